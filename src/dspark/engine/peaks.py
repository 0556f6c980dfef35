"""How far drafts without confidences are expected to survive, learned while serving.

Where the drafter has no confidence head, its largest draft probabilities are what drafts are known
by (`maths.peaks`), refitted from the rounds of the engine itself. A fit knows finished rounds
alone, so it decides nothing about the tokens it was fitted on.

Suffixes: N rounds, K block slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dspark.core import RoundRecord, SamplingParams
from dspark.engine.survival import UNKNOWN_ACCEPTANCE, Floats, Mean
from dspark.maths.peaks import PeakFit, fit

WINDOW = 512  # rounds of one way of sampling that a fit goes by
FIRST_FITS, FIT_EVERY = (8, 16, 32), 64


@dataclass(frozen=True, slots=True)
class _Round:
    """Its slots' peaks; the first `accepted` passed, and of the first `told` that is known."""

    peaks: tuple[float, ...]
    accepted: int
    told: int


@dataclass(slots=True)
class _Way:
    """What is known of greedy requests, or of the others; no mean before the first fit."""

    fit: PeakFit
    mean: Mean | None = None
    rounds: deque[_Round] = field(default_factory=lambda: deque(maxlen=WINDOW))
    seen: int = 0


class PeakSurvival:
    """Survival by largest draft probabilities, greedy requests apart from the others.

    Args:
        block_size: K.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._ways = {greedy: _Way(PeakFit.start(block_size)) for greedy in (True, False)}

    def mean(self, params: SamplingParams) -> Mean | None:
        """What drafts do on average; None before the first fit."""
        return self._way(params).mean

    def survival(self, params: SamplingParams, peaks_K: Floats) -> Floats:
        """a_k of a draft with these largest probabilities."""
        return self._way(params).fit.survival_of(peaks_K)

    def take(self, record: RoundRecord, params: SamplingParams) -> bool:
        """Learn from a round; a grammar bends what its requests accept, so theirs tell nothing.

        Returns:
            Whether what is expected of requests like these has changed.
        """
        if params.grammar is not None or not record.confidence:
            return False
        way = self._way(params)
        told = record.accepted + record.rejected
        way.rounds.append(_Round(record.confidence, record.accepted, told))
        way.seen += 1
        if way.seen not in FIRST_FITS and way.seen % FIT_EVERY:
            return False
        self._refit(way)
        return True

    def _way(self, params: SamplingParams) -> _Way:
        return self._ways[params.temperature == 0]

    def _refit(self, way: _Way) -> None:
        """Parameters from the window, and the mean survival that they give its drafts."""
        size, rounds = self._block_size, way.rounds
        peaks_NK = np.full((len(rounds), size), np.nan)
        for row_K, one in zip(peaks_NK, rounds, strict=True):
            row_K[: len(one.peaks)] = one.peaks
        slots_K = np.arange(1, size + 1)
        accepted_N1 = np.array([[one.accepted] for one in rounds])
        told_N1 = np.array([[one.told] for one in rounds])
        way.fit = fit(peaks_NK, slots_K <= accepted_N1, slots_K <= told_N1)
        given_NK = [way.fit.survival_of(one.peaks) for one in rounds]
        way.mean = Mean(_mean_survival(given_NK, size))


def _mean_survival(survival_NK: Sequence[Floats], size: int) -> list[float]:
    """Mean a_k, each slot's given the slots before it; drafts may be short, and a slot that none
    reached is taken to be like the one before.
    """
    mean_K: list[float] = []
    survival, given = 1.0, UNKNOWN_ACCEPTANCE
    for k in range(size):
        deep = [a_K for a_K in survival_NK if len(a_K) > k]
        before = sum(a_K[k - 1] if k else 1.0 for a_K in deep)
        if before > 0:
            given = min(sum(a_K[k] for a_K in deep) / before, 1.0)
        survival *= given
        mean_K.append(survival)
    return mean_K
