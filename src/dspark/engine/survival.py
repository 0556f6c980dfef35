"""How far drafts are expected to survive: by calibration, and by a request's own past (§3.2.1).

Suffixes: R requests, K block slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

from dspark.core import Request, RoundRecord, SamplingParams
from dspark.tables.calibration import CalibrationEntry, CalibrationTable, Key

Floats = Sequence[float]

# Acceptance that stands for a drafter nobody calibrated, where a request has no history yet.
UNKNOWN_ACCEPTANCE = 0.5
# Rounds that a request is judged by, and tokens that stand for them while it is young.
MEMORY, PRIOR = 8, 2.0
MOST_ENTRIES = 1024  # ways of sampling to remember; clients may think of any number


class Mean:
    """What drafts of one way of sampling do on average.

    Attributes:
        survival_K: a_k of each slot.
        conditional_K: c_k of each slot.
        tokens: expected of the first 0, 1, … K slots.
    """

    def __init__(self, survival_K: Floats) -> None:
        self.survival_K, self.conditional_K = survival_K, conditional(survival_K)
        self.tokens = list(accumulate(survival_K, initial=0.0))


class Survival:
    """Calibrated survival, each request's by the entry for its way of sampling.

    Args:
        table: the drafter's; None takes its confidences as they are.
        block_size: K.
    """

    def __init__(self, table: CalibrationTable | None, block_size: int) -> None:
        self._table, self._block_size = table, block_size
        self._known: dict[Key, tuple[CalibrationEntry | None, Mean]] = {}

    def mean(self, params: SamplingParams) -> Mean:
        """What drafts do on average; for requests without history."""
        return self._lookup(way(params))[1]

    def of(self, requests: Sequence[Request], confidence_RK: Sequence[Floats]) -> list[Floats]:
        """a_{r,k} of drafts with these confidences."""
        survival_RK: list[Floats] = []
        for request, sure_K in zip(requests, confidence_RK, strict=True):
            entry, _ = self._lookup(way(request.params))
            found_K = entry.survival_of(sure_K) if entry else list(accumulate(sure_K, mul))
            survival_RK.append(found_K)
        return survival_RK

    def _lookup(self, key: Key) -> tuple[CalibrationEntry | None, Mean]:
        if key not in self._known:
            entry = nearest_entry(self._table, key)
            unknown_K = [UNKNOWN_ACCEPTANCE**k for k in range(1, self._block_size + 1)]
            make_room(self._known)
            self._known[key] = (entry, Mean(entry.mean_survival if entry else unknown_K))
        return self._known[key]


@dataclass(slots=True)
class Evidence:
    """How many draft tokens of a request passed, against what the mean survival had promised.

    Attributes:
        memory: rounds that a request is judged by.
    """

    memory: int = MEMORY
    rounds: int = 0
    accepted: float = 0.0
    promised: float = 0.0

    def take(self, records: Sequence[RoundRecord], mean: Mean) -> None:
        """Count the rounds that are new; older ones fade."""
        for record in records[self.rounds :]:
            if record.verified:
                fade = 1 - 1 / self.memory
                self.accepted = fade * self.accepted + record.accepted
                self.promised = fade * self.promised + mean.tokens[record.verified]
        self.rounds = len(records)

    def ratio(self, first: float = 1.0, prior: float = PRIOR) -> float:
        """Accepted over promised; near `first` while few rounds tell.

        Args:
            prior: tokens that stand for a request while it is young.
        """
        return (self.accepted + prior * first) / (self.promised + prior)


def nearest_entry(table: CalibrationTable | None, key: Key) -> CalibrationEntry | None:
    """A table's entry for a way of sampling, or the nearest in temperature; None without any.

    Where an informed head speaks above temperature 0, entries that it made come first.
    """
    entries = () if table is None else table.entries
    two_heads = any(entry.confidence for entry in entries)

    def distance(entry: CalibrationEntry) -> tuple[bool, bool, float]:
        another_head = two_heads and bool(entry.temperature) != bool(key[0])
        return entry.key != key, another_head, abs(entry.temperature - key[0])

    return min(entries, key=distance, default=None)


def conditional(survival_K: Floats) -> list[float]:
    """c_k of each slot, given that the slots before it survive."""
    before = (1.0, *survival_K)
    return [a / max(b, 1e-12) for a, b in zip(survival_K, before, strict=False)]


def way(params: SamplingParams) -> Key:
    """What calibration tells requests apart by."""
    return (params.temperature, params.top_p, params.top_k)


def make_room(remembered: dict[Key, Any]) -> None:
    """Forget all ways of sampling when there are too many of them."""
    if len(remembered) >= MOST_ENTRIES:
        remembered.clear()
