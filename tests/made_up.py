"""Requests, confidences and costs made up for the tests of the adaptive policies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from dspark.core import (
    Batch,
    Chunk,
    DraftDecision,
    Request,
    RoundRecord,
    SamplingParams,
    StepOutput,
    StepRecord,
    TokenKind,
)
from dspark.engine.draft_gate import Choice
from dspark.engine.policies import PolicyTables
from dspark.engine.scheduler import Adaptive
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


def decided(policy: Adaptive, batch: Batch) -> DraftDecision:
    """What is settled where these requests are drafted and plain, whether it pays or not."""
    requests = [*batch.decode, *batch.plain]
    wanted_R = [True] * len(batch.decode) + [False] * len(batch.plain)
    choice = Choice(wanted_R, policy.acceptance.expected(requests))
    return policy.planner.decide(Batch(batch.prefill, requests), choice)


def plan(policy: Adaptive, batch: Batch, sure: Any) -> list[int]:
    """Verify lengths where all requests are drafted, whether it pays or not."""
    return list(policy.lengths(decided(policy, batch), sure))


def step(policy: Adaptive, batch: Batch, sure: Any) -> list[int]:
    """A whole step of which every draft token is accepted."""
    lengths = plan(policy, batch, sure)
    policy.observe(committed(batch, sure, lengths))
    return lengths


def committed(batch: Batch, sure: Any, lengths: list[int]) -> StepRecord:
    """The step that these drafts and lengths make."""
    outputs = [
        StepOutput(
            request,
            [1],
            [TokenKind.DRAWN],
            False,
            RoundRecord(len(sure_K), length, length, length + 1, confidence=tuple(sure_K)),
        )
        for request, sure_K, length in zip(
            batch.decode, sure.confidence_RK.tolist(), lengths, strict=True
        )
    ]
    outputs += [StepOutput(r, [1], [], False, RoundRecord(0, 0, 0, 1)) for r in batch.plain]
    return StepRecord(len(outputs), len(batch.decode), K, 0, 0, 0, 0.0, outputs)
