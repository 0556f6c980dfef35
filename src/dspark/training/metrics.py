"""What a training step measures, and how it is reported.

Suffixes: A anchors, K block slots.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dspark.maths.losses import DraftLoss


def expected_accepted_length(overlap_AK: Tensor, label_valid_AK: Tensor) -> tuple[float, int]:
    """Teacher-forced estimate of accepted_length, bonus token included.

    1 + Σ_k Π_{i≤k} c*_i, over the blocks that no end of text cuts.

    Returns:
        (sum over blocks, number of blocks).
    """
    whole = label_valid_AK.all(1)
    survival = overlap_AK[whole].cumprod(1)
    return float(survival.sum() + whole.sum()), int(whole.sum())


class Meter:
    """Running sums between two log lines."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.steps = 0
        self.anchors = 0
        self.position_sum: Tensor | None = None
        self.position_count: Tensor | None = None
        self.seconds = 0.0

    def add(self, loss: DraftLoss, label_valid_AK: Tensor, steps: int = 1) -> None:
        """Count one batch; ``steps`` is 0 for one that is but a part of a step."""
        self.steps += steps
        self.anchors += len(label_valid_AK)
        total = float(loss.total.detach())
        parts = {"loss": total, "ce": loss.ce, "tv": loss.tv, "bce": loss.bce}
        parts |= {f"loss_{name}": value for name, value in loss.extra.items()}
        for name, value in parts.items():
            self.sums[name] += value
        length, blocks = expected_accepted_length(loss.overlap_AK, label_valid_AK)
        self.sums["length"] += length
        self.sums["blocks"] += blocks
        valid = label_valid_AK.float()
        self._add_positions((loss.overlap_AK * valid).sum(0).cpu(), valid.sum(0).cpu())

    def _add_positions(self, accepted: Tensor | None, count: Tensor | None) -> None:
        if accepted is None or count is None:
            return
        if self.position_sum is None or self.position_count is None:
            self.position_sum, self.position_count = accepted, count
        else:
            self.position_sum = self.position_sum + accepted
            self.position_count = self.position_count + count

    def spend(self, seconds: float) -> None:
        """Count the time of a step; what lies between steps is nobody's speed."""
        self.seconds += seconds

    def state(self) -> dict[str, Any]:
        """Plain values from which :meth:`restored` makes the same meter."""
        tensors = {"position_sum": self.position_sum, "position_count": self.position_count}
        return {
            "sums": dict(self.sums),
            "steps": self.steps,
            "anchors": self.anchors,
            "seconds": self.seconds,
        } | {name: None if x is None else x.tolist() for name, x in tensors.items()}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Meter:
        """A meter that goes on where :meth:`state` was taken."""
        meter = cls()
        meter.sums.update(state["sums"])
        meter.steps, meter.anchors = state["steps"], state["anchors"]
        meter.seconds = state["seconds"]
        if state["position_sum"] is not None:
            meter.position_sum = torch.tensor(state["position_sum"])
            meter.position_count = torch.tensor(state["position_count"])
        return meter

    @classmethod
    def merged(cls, states: Sequence[dict[str, Any]]) -> Meter:
        """One meter of several processes' states; steps and clock are the first one's."""
        meter = cls.restored(states[0])
        for state in states[1:]:
            other = cls.restored(state)
            meter.anchors += other.anchors
            for name, value in other.sums.items():
                meter.sums[name] += value
            meter._add_positions(other.position_sum, other.position_count)
        return meter

    def summary(self) -> dict[str, float | list[float] | None]:
        """Means since the start; ``anchors_per_s`` over the steps' time, None where that is 0."""
        assert self.position_sum is not None
        assert self.position_count is not None
        out: dict[str, float | list[float] | None] = {
            name: round(self.sums[name] / self.steps, 5) for name in ("loss", "ce", "tv", "bce")
        }
        further = [name for name in self.sums if name.startswith("loss_")]
        out |= {name: round(self.sums[name] / self.steps, 5) for name in further}
        acceptance = self.position_sum / self.position_count.clamp(min=1)
        out["acceptance"] = [round(float(a), 4) for a in acceptance]
        out["accepted_length"] = round(self.sums["length"] / max(self.sums["blocks"], 1), 4)
        rate = round(self.anchors / self.seconds, 1) if self.seconds > 0 else None
        out["anchors_per_s"] = rate
        return out


class PhaseTimer:
    """Wall-clock seconds by named phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the block's time to ``name``."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
