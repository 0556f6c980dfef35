"""Whether the confidences still mean what they say, and a refit where they do not (DSpark §3.2.1).

Suffixes: N rounds, K block slots.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dspark.core import DEFAULT_RULE, RoundRecord, SamplingParams
from dspark.maths.reliability import Bools, Floats, ece
from dspark.maths.temperature_scaling import sequential_temperature_scaling
from dspark.tables.calibration import (
    CalibrationEntry,
    CalibrationTable,
    Key,
    confidence_logits,
)

EntryOf = Callable[[Key], CalibrationEntry | None]

LEAST_SHARE = 0.1  # of the window's rounds must tell of a slot for it to count or be refitted


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Predictions against outcomes, by slot; NaN where no round tells.

    Attributes:
        predicted: mean calibrated survival.
        observed: share of prefixes that were accepted.
        ece: expected calibration error.
        rounds: rounds that tell of the slot.
        mean_ece: over the slots with enough of them; NaN without one.
    """

    predicted: list[float]
    observed: list[float]
    ece: list[float]
    rounds: list[int]
    mean_ece: float


@dataclass(frozen=True, slots=True)
class Refit:
    """New temperatures, and what they do for rounds that they were not fitted on.

    Attributes:
        entry: for the way of sampling that the window has most of.
        before, after: mean expected calibration error of those rounds.
    """

    entry: CalibrationEntry
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class _Round:
    """Of its slots the first `accepted` passed, and of the first `told` that is known."""

    key: Key
    confidence: tuple[float, ...]
    accepted: int
    told: int


class Drift:
    """A sliding window of rounds. Safe to feed and read from different threads.

    Slot k of a round counts only when it was verified. Behind the verify length a rejection of an
    earlier slot would tell that the prefix failed, but nothing there could tell that it passed, so
    counting those rounds would lower what is observed. Leaving rounds out by verify length does not
    bend the comparison: whether slot k is verified depends on c_1 … c_k (which look at x_<k), on
    other requests and on the load, never on what became of the draft tokens. So among rounds with
    equal predictions the verified ones are accepted as often as the others would have been. What
    does shift is the mix of predictions: the means are those of verified slots.

    Args:
        block_size: γ.
        window: rounds.
        rule: by which drafts above temperature 0 are accepted.
    """

    def __init__(self, block_size: int, window: int, rule: str = DEFAULT_RULE) -> None:
        self._size, self.window, self._rule = block_size, window, rule
        self._rounds: deque[_Round] = deque(maxlen=window)
        self._lock = threading.Lock()
        self.seen = 0

    def add(self, record: RoundRecord, params: SamplingParams, room: int) -> None:
        """Add a round; without confidences, or with ones that are no numbers, it tells nothing.

        Args:
            room: tokens that the text could still take before this round.
        """
        sure = record.confidence
        if len(sure) != self._size or not all(map(math.isfinite, sure)):
            return
        # What `calibration.rounds.outcomes` says, without arrays: this runs for every round.
        accepted, verified = record.accepted, record.verified
        told = min(verified if record.rejected else accepted, room, verified)
        key = (params.temperature, params.top_p, params.top_k)
        with self._lock:
            self._rounds.append(_Round(key, sure, accepted, told))
            self.seen += 1

    def report(self, table: CalibrationTable | None) -> DriftReport:
        """How the window compares with what the table makes of the confidences."""
        with self._lock:
            rounds = list(self._rounds)
        return _compare(rounds, self._size, lambda key: table.nearest(key) if table else None)

    def refit(self, table: CalibrationTable | None) -> Refit | None:
        """Fit temperatures on every other round of the commonest way of sampling.

        Returns:
            None where they would not lower the error on the rounds in between.
        """
        with self._lock:
            rounds = list(self._rounds)
        key = Counter(r.key for r in rounds).most_common(1)[0][0]
        mine = [r for r in rounds if r.key == key]
        fitted, judged = mine[::2], mine[1::2]
        old = table.nearest(key) if table else None
        entry = replace(_fit(fitted, key, old, self._size), verification=self._rule)
        before = _compare(judged, self._size, lambda _: old).mean_ece
        after = _compare(judged, self._size, lambda _: entry).mean_ece
        return Refit(entry, before, after) if after < before else None


def _compare(rounds: Sequence[_Round], size: int, entry_of: EntryOf) -> DriftReport:
    survival_NK, accepted_NK, valid_NK = _arrays(rounds, size, entry_of)
    predicted, observed, errors, counts = [], [], [], []
    for k in range(size):
        rows = valid_NK[:, k]
        survival_N, accepted_N = survival_NK[rows, k], accepted_NK[rows, k]
        counts.append(int(rows.sum()))
        predicted.append(_mean(survival_N))
        observed.append(_mean(accepted_N))
        errors.append(ece(survival_N, accepted_N))
    enough = max(LEAST_SHARE * len(rounds), 1)
    known = [error for error, count in zip(errors, counts, strict=True) if count >= enough]
    return DriftReport(predicted, observed, errors, counts, _mean(np.array(known)))


def _arrays(rounds: Sequence[_Round], size: int, entry_of: EntryOf) -> tuple[Floats, Bools, Bools]:
    """Calibrated survival, prefixes accepted, and whether that is known, each [N, K]."""
    confidence_NK = _confidence(rounds, size)
    survival_NK = np.cumprod(confidence_NK, axis=1, dtype=np.float64)
    for key in {r.key for r in rounds}:
        entry = entry_of(key)
        if entry is not None:
            rows = np.array([r.key == key for r in rounds])
            survival_NK[rows] = entry.survival(confidence_NK[rows])
    slots_K = np.arange(1, size + 1)
    accepted_N1 = np.array([r.accepted for r in rounds], dtype=np.int64).reshape(-1, 1)
    told_N1 = np.array([r.told for r in rounds], dtype=np.int64).reshape(-1, 1)
    return survival_NK, slots_K <= accepted_N1, slots_K <= told_N1


def _fit(
    rounds: Sequence[_Round], key: Key, old: CalibrationEntry | None, size: int
) -> CalibrationEntry:
    """Sequential Temperature Scaling; a slot that too few rounds tell of keeps its temperature."""
    confidence_NK = _confidence(rounds, size)
    _, accepted_NK, valid_NK = _arrays(rounds, size, lambda _: None)
    base_K = np.ones(size) if old is None else np.array(old.temperatures)
    sparse_K = valid_NK.sum(axis=0) < LEAST_SHARE * len(rounds)
    # With its logits scaled beforehand and no outcome, such a slot gets a temperature of 1.
    scale_K = np.where(sparse_K, base_K, 1.0)
    found_K = scale_K * sequential_temperature_scaling(
        confidence_logits(confidence_NK) / scale_K, accepted_NK, valid_NK & ~sparse_K
    )
    entry = CalibrationEntry(*key, tuple(found_K.tolist()), (0.0,) * size, len(rounds))
    mean_K = entry.survival(confidence_NK).mean(axis=0)
    return replace(entry, mean_survival=tuple(mean_K.tolist()))


def _confidence(rounds: Sequence[_Round], size: int) -> Floats:
    return np.array([r.confidence for r in rounds], dtype=np.float64).reshape(-1, size)


def _mean(values: Floats | Bools) -> float:
    return float(values.mean()) if len(values) else float("nan")
