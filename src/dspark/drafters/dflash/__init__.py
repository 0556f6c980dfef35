"""The DFlash drafter: DSpark's backbone without sequential and confidence heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dspark.drafters.block.config import BlockConfig, BlockSection
from dspark.drafters.block.drafter import BlockDrafter
from dspark.maths.losses import LossWeights


@dataclass(frozen=True, kw_only=True)
class DFlashConfig(BlockConfig):
    """Shape of a DFlash drafter."""

    kind: ClassVar[str] = "dflash"


class DFlashDrafter(BlockDrafter):
    """Parallel block drafter: every slot is predicted without knowing the slots before it."""

    Config = DFlashConfig
    Recipe = BlockSection

    def loss_weights(self, weights: LossWeights) -> LossWeights:
        """Cross-entropy alone, as DFlash is trained; of ``weights`` only the decay counts."""
        return LossWeights(ce=1.0, tv=0.0, bce=0.0, decay=weights.decay)
