"""The MTP drafter: one layer on the target's last state.

Source: multi-token prediction in the DeepSeek-V3 report (arXiv 2412.19437).

MTP-1 drafts one token a round (block_size 1). With a larger block the layer runs on along its own
chain, its final-normed output in the place of the target's state, and is trained that way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dspark.config import DrafterSection
from dspark.drafters.chain.batch import PositionBatch
from dspark.drafters.chain.config import ChainConfig
from dspark.drafters.chain.drafter import ChainDrafter, ChainLayer
from dspark.maths.losses import DraftLoss, LossWeights, StepTotals
from dspark.targets.layers import RMSNorm


class MTPSection(DrafterSection):
    """`[drafter]` of MTP drafters."""

    num_layers: int = Field(1, ge=1, description="draft layers")


@dataclass(frozen=True, kw_only=True)
class MTPConfig(ChainConfig):
    """Shape of an MTP drafter; the layout of its checkpoint is this project's own."""

    kind: ClassVar[str] = "mtp"
    architecture: ClassVar[str] = "DSparkMTPModel"
    reads_taps: ClassVar[bool] = False


class MTPDrafter(ChainDrafter):
    """h' = M [norm(embedding) ; norm(h)], one causal layer, own final norm, shared head."""

    Config = MTPConfig
    Recipe = MTPSection

    def __init__(self, config: MTPConfig) -> None:
        size = config.hidden_size
        super().__init__(config, ChainLayer(config, size))
        self.enorm = RMSNorm(size, config.rms_norm_eps)
        self.hnorm = RMSNorm(size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self._init_weights()

    def entry(self, taps_TM: Tensor) -> Tensor:
        return taps_TM

    def follow(self, output: Tensor) -> Tensor:
        return self.norm(output)

    def combine(self, embedded: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        joined = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(feature)], -1))
        return self.layer.input_layernorm(joined), joined

    def loss_weights(self, weights: LossWeights) -> LossWeights:
        """Cross-entropy alone; of the recipe's weights only the decay counts."""
        return LossWeights(ce=1.0, tv=0.0, bce=0.0, decay=weights.decay)

    def loss(
        self, batch: PositionBatch, weights: LossWeights, totals: StepTotals | None = None
    ) -> DraftLoss:
        """Cross-entropy of the true token over all positions and steps."""
        return self.chain_loss(batch, self.loss_weights(weights), totals)
