"""Requests, confidences and costs made up for the tests of the adaptive policies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from dspark.core import Batch, Chunk, Request, RoundRecord, SamplingParams
from dspark.engine.adaptive import PolicyTables
from dspark.tables.calibration import CalibrationTable
from dspark.tables.cost import CostKey, CostTable, rising

K = 4
KEY = CostKey("m", 1, "t", "float32", "d")


def tables(row_ms: float = 1.0, calibration: CalibrationTable | None = None) -> PolicyTables:
    """10 ms for one row and `row_ms` for each further one; 2 ms to draft."""
    verify = rising([(1, 0.010), (101, 0.010 + row_ms / 10)])
    return PolicyTables(CostTable(KEY, verify, rising([(1, 0.002)]), 64), calibration)


def batch(*params: SamplingParams, prompts: int = 0) -> Batch:
    decode = [Request(i, [7], p, output_ids=[8]) for i, p in enumerate(params or [GREEDY])]
    prompt = Request(99, [7] * prompts)
    return Batch([Chunk(prompt, 0, prompts)] if prompts else [], decode)


def drafts(*rows: list[float]) -> Any:
    return SimpleNamespace(confidence_RK=np.array(rows, dtype=float), peaks=False)


GREEDY, SEEDED = SamplingParams(), SamplingParams(temperature=1.0, seed=5)


def record(drafted: int, verified: int, accepted: int) -> RoundRecord:
    return RoundRecord(drafted, verified, accepted, accepted + 1)
