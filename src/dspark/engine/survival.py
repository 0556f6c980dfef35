"""Survival of drafts on average (DSpark §3.2.1).

Suffix: K block slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

Floats = Sequence[float]

# Acceptance of a drafter nobody calibrated, where a request has no history yet.
UNKNOWN_ACCEPTANCE = 0.5


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

    @classmethod
    def unknown(cls, block_size: int) -> Mean:
        """Of a drafter nobody calibrated."""
        return cls([UNKNOWN_ACCEPTANCE**k for k in range(1, block_size + 1)])


def conditional(survival_K: Floats) -> list[float]:
    """c_k of each slot, given that the slots before it survive."""
    before = (1.0, *survival_K)
    return [a / max(b, 1e-12) for a, b in zip(survival_K, before, strict=False)]
