"""The DFlash drafter: DSpark's backbone with the sequential and confidence heads off."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from dspark.drafters.drafter import DrafterConfig
from dspark.drafters.dspark import DSparkDrafter
from dspark.maths.losses import LossWeights


class DFlashDrafter(DSparkDrafter):
    """Parallel block drafter: every slot is predicted without knowing the slots before it."""

    kind: ClassVar[str] = "dflash"

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(replace(config, markov_rank=0, candidates=0, confidence_head=False))

    def loss_weights(self, weights: LossWeights) -> LossWeights:
        """Cross-entropy alone, as DFlash is trained; of ``weights`` only the decay counts."""
        return LossWeights(ce=1.0, tv=0.0, bce=0.0, decay=weights.decay)
