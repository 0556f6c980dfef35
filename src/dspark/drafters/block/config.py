"""Configuration of block drafters: a block is the anchor and MASK in its other slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from dspark.config import TappedSection
from dspark.drafters.config import Check, DrafterConfig
from dspark.drafters.fields import Fields
from dspark.errors import IncompatibleDrafterError
from dspark.targets.family import TargetSpec


class BlockSection(TappedSection):
    """`[drafter]` of block drafters."""

    mask_token_id: int | None = Field(
        None, ge=0, description="id of MASK; unset picks a reserved id of the target"
    )


@dataclass(frozen=True, kw_only=True)
class BlockConfig(DrafterConfig):
    """Shape of a block drafter without heads.

    Attributes:
        mask_token_id: token that fills slots 2…K of a block; the text never contains it.
        num_anchors: anchors of a training sequence, for the record.
        sample_from_anchor: slot 1 of a block holds the anchor and predicts the token after it.
    """

    architecture: ClassVar[str] = "Qwen3DSparkModel"
    public_layout: ClassVar[bool] = True

    mask_token_id: int
    num_anchors: int = 512
    sample_from_anchor: bool = True

    @property
    def from_texts(self) -> dict[str, Any]:
        return {"mask": self.mask_token_id}

    def own_fields(self) -> dict[str, Any]:
        return {
            "block_size": self.block_size,
            "mask_token_id": self.mask_token_id,
            "num_anchors": self.num_anchors,
            "sample_from_anchor": self.sample_from_anchor,
            "markov_rank": 0,
            "enable_confidence_head": False,
        }

    @classmethod
    def read_own(cls, given: Fields) -> dict[str, Any]:
        return {
            "mask_token_id": given.whole("mask_token_id", least=0),
            "block_size": given.whole("block_size"),
            "num_anchors": given.whole("num_anchors", default=512),
            "sample_from_anchor": given.flag("sample_from_anchor", default=True),
        }

    def check_fits(self, spec: TargetSpec, stop_ids: frozenset[int]) -> None:
        super().check_fits(spec, stop_ids)
        mask = self.mask_token_id
        if not 0 <= mask < spec.vocab_size or mask in stop_ids:
            raise IncompatibleDrafterError(
                "The drafter's mask token cannot be used with this target",
                found=f"mask {mask}, vocabulary {spec.vocab_size}, stop tokens {sorted(stop_ids)}",
                fix="The mask must be an id that no text contains",
            )
        if not self.sample_from_anchor:
            raise IncompatibleDrafterError(
                "The drafter uses the layout with 1 + block_size slots",
                found="drafter sample_from_anchor false, this project true",
                fix="Convert or retrain it anchor-first; read as it is it would accept about 1 %",
            )

    @classmethod
    def same_layers(cls, start: DrafterConfig) -> bool:
        return isinstance(start, BlockConfig)

    @classmethod
    def continuing(cls, asked: Any, start: DrafterConfig) -> Iterator[Check]:
        assert isinstance(start, BlockConfig)
        mine, theirs = asked.mask_token_id, start.mask_token_id
        yield "mask_token_id", mine, theirs, mine in (None, theirs)
