"""Configuration of the DSpark drafter: a block drafter with a sequential and a confidence head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from dspark.config import LossSection
from dspark.drafters.block.config import BlockConfig, BlockSection
from dspark.drafters.block.heads import MARKOV_HEADS
from dspark.drafters.config import Check, DrafterConfig, SequentialHead
from dspark.drafters.dspark.growth import BY_SLOT, GROWING
from dspark.drafters.fields import Fields


class DSparkSection(BlockSection):
    """`[drafter]` of DSpark drafters."""

    markov_rank: int = Field(
        128, ge=0, description="rank r of the sequential head; 0 leaves it out"
    )
    markov_head_type: Literal["vanilla", "gated", "rnn", "residual_rnn", "refined", "selector"] = (
        Field("vanilla", description="kind of sequential head")
    )
    candidates: int = Field(
        0,
        ge=0,
        description="best parallel logits of a slot that the sequential head scores; 0 for all",
    )
    confidence_head: bool = Field(True, description="whether slots estimate their own acceptance")

    def check_loss(self, loss: LossSection) -> None:
        if self.candidates and not loss.base:
            raise ValueError(
                "drafter.candidates needs loss.base above 0: nothing else teaches the parallel "
                "logits which tokens shall be candidates"
            )


@dataclass(frozen=True, kw_only=True)
class DSparkConfig(BlockConfig):
    """Shape of a DSpark drafter.

    Attributes:
        markov_rank: r of the transition bias; 0 for no sequential head.
        candidates: best parallel logits that the sequential head scores alone; 0 for all.
        confidence_with_markov: the confidence head sees W_1[x_{k-1}] beside h_k.
    """

    kind: ClassVar[str] = "dspark"

    markov_rank: int = 0
    markov_head_type: str = "vanilla"
    candidates: int = 0
    confidence_head: bool = False
    confidence_with_markov: bool = True

    @property
    def gives_confidence(self) -> bool:
        return self.confidence_head

    @property
    def plain_confidence(self) -> bool:
        return self.confidence_head and not self.confidence_with_markov

    @property
    def sequential_head(self) -> SequentialHead | None:
        if not self.markov_rank:
            return None
        return SequentialHead(self.markov_head_type, self.markov_rank, self.candidates)

    def own_fields(self) -> dict[str, Any]:
        fields = super().own_fields() | {
            "markov_rank": self.markov_rank,
            "enable_confidence_head": self.confidence_head,
        }
        if self.markov_rank:
            fields["markov_head_type"] = self.markov_head_type
        if self.candidates:
            fields["draft_candidates"] = self.candidates
        if self.confidence_head:
            fields["confidence_head_with_markov"] = self.confidence_with_markov
        return fields

    @classmethod
    def read_own(cls, given: Fields) -> dict[str, Any]:
        rank = given.whole("markov_rank", least=0, default=0)
        candidates = given.whole("draft_candidates", default=0)
        if candidates and not rank:
            why = "given, and there is no sequential head to score"
            raise given.refusal("draft_candidates", why)
        head = given.text("markov_head_type", default="vanilla", among=MARKOV_HEADS)
        return super().read_own(given) | {
            "markov_rank": rank,
            "markov_head_type": head,
            "candidates": candidates,
            "confidence_head": given.flag("enable_confidence_head", default=False),
            "confidence_with_markov": given.flag("confidence_head_with_markov", default=bool(rank)),
        }

    @classmethod
    def recognises(cls, given: Fields) -> bool:
        heads = given.whole("markov_rank", least=0, default=0)
        return bool(heads or given.flag("enable_confidence_head", default=False))

    @classmethod
    def continuing(cls, asked: Any, start: DrafterConfig) -> Iterator[Check]:
        head, rank = start.sequential_head, asked.markov_rank
        if head is not None and rank:
            fixed = asked.markov_head_type == head.kind and head.kind not in GROWING
            fits = rank == head.rank if fixed else rank >= head.rank
            yield "markov_rank", rank, head.rank, fits
            size, theirs = asked.block_size, start.block_size
            by_slot = fixed and head.kind == BY_SLOT
            yield "block_size", size, theirs, not by_slot or size == theirs
        yield from super().continuing(asked, start)
