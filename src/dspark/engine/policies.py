"""Policies: how many draft tokens of each request are verified (DSpark §3.2.2).

A policy must not let the fate of a draft token depend on the token itself or on later ones: that
is what keeps verification lossless when the length varies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from dspark.core import Batch, DraftBlock, StepRecord


class Policy(ABC):
    """Decides verify lengths.

    Attributes:
        name: as it is written on the command line.
        draft_len: draft tokens to make each round, at most; 0 for plain decoding.
        needs_confidence: it reads the drafter's confidences.
        reads_peaks: it reads the largest draft probabilities of a drafter that has none.
    """

    name: str
    draft_len: int
    needs_confidence: bool = False
    reads_peaks: bool = False

    def wants(self, batch: Batch) -> Sequence[bool]:
        """Which of the decode requests are worth a draft, judged by their past rounds alone."""
        return [True] * len(batch.decode)

    def steps(self, batch: Batch) -> int:
        """Draft tokens to make for each request that is drafted, known before they are made."""
        return self.draft_len

    @abstractmethod
    def plan(self, batch: Batch, drafts: DraftBlock) -> Sequence[int]:
        """Draft tokens to verify of each of the batch's decode requests, 0 to K."""

    def observe(self, step: StepRecord) -> None:  # noqa: B027 - most have nothing to learn
        """A step is over and committed; what it shows may count from the next one on."""


class Off(Policy):
    """Plain decoding: nothing is drafted."""

    name, draft_len = "off", 0

    def plan(self, batch: Batch, drafts: DraftBlock) -> Sequence[int]:
        return [0] * len(batch.decode)


class Fixed(Policy):
    """The same number of draft tokens for every request in every round."""

    def __init__(self, length: int) -> None:
        assert length >= 1
        self.name, self.draft_len = f"fixed:{length}", length

    def plan(self, batch: Batch, drafts: DraftBlock) -> Sequence[int]:
        return [self.draft_len] * len(batch.decode)


class Threshold(Policy):
    """Slots up to the first whose confidence c_k is below a limit (the paper's Figure 5).

    Lossless: c_k does not look at draft token k, so a token's fate hangs on earlier ones alone.
    """

    needs_confidence = True

    def __init__(self, limit: float, block_size: int) -> None:
        self.name, self.draft_len, self.limit = f"threshold:{limit:g}", block_size, limit

    def plan(self, batch: Batch, drafts: DraftBlock) -> Sequence[int]:
        assert drafts.confidence_RK is not None
        return [
            next((k for k, sure in enumerate(sure_K) if sure < self.limit), len(sure_K))
            for sure_K in drafts.confidence_RK.tolist()
        ]
