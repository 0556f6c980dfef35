"""Policies: whom to draft, and how many draft tokens of each request to verify (DSpark §3.2.2).

A policy must not let the fate of a draft token depend on the token itself or on later ones: that
keeps verification lossless when the length varies. So it answers in two halves. `decide` runs
before the drafts exist and knows past rounds alone; `lengths` gets that decision and the drafts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from dspark.core import Batch, DraftBlock, DraftDecision, StepRecord
from dspark.tables.calibration import CalibrationTable
from dspark.tables.cost import CostTable


@dataclass(frozen=True, slots=True)
class PolicyTables:
    """What an adaptive policy knows of machine and drafter.

    Attributes:
        cost: measured on this machine with these models.
        calibration: the drafter's; None takes its confidences as they are.
    """

    cost: CostTable
    calibration: CalibrationTable | None = None


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

    def decide(self, batch: Batch) -> DraftDecision:
        """Whom to draft and how far, from past rounds alone; all requests, whole blocks."""
        return DraftDecision(batch, self.draft_len)

    @abstractmethod
    def lengths(self, decision: DraftDecision, drafts: DraftBlock) -> Sequence[int]:
        """Draft tokens to verify of each request that was drafted, 0 to K."""

    def observe(self, step: StepRecord) -> None:  # noqa: B027 - most have nothing to learn
        """Learn from a step that is over and committed; it counts from the next one on."""


class Off(Policy):
    """Plain decoding: nothing is drafted."""

    name, draft_len = "off", 0

    def lengths(self, decision: DraftDecision, drafts: DraftBlock) -> Sequence[int]:
        return [0] * len(decision.batch.decode)


class Fixed(Policy):
    """The same number of draft tokens for every request in every round."""

    def __init__(self, length: int) -> None:
        assert length >= 1
        self.name, self.draft_len = f"fixed:{length}", length

    def lengths(self, decision: DraftDecision, drafts: DraftBlock) -> Sequence[int]:
        return [self.draft_len] * len(decision.batch.decode)


class Threshold(Policy):
    """Slots up to the first whose confidence c_k is below a limit (the paper's Figure 5).

    Lossless: c_k does not look at draft token k, so a token's fate depends on earlier ones alone.
    """

    needs_confidence = True

    def __init__(self, limit: float, block_size: int) -> None:
        self.name, self.draft_len, self.limit = f"threshold:{limit:g}", block_size, limit

    def lengths(self, decision: DraftDecision, drafts: DraftBlock) -> Sequence[int]:
        assert drafts.confidence_RK is not None
        return [
            next((k for k, sure in enumerate(sure_K) if sure < self.limit), len(sure_K))
            for sure_K in drafts.confidence_RK.tolist()
        ]
