"""The Eagle3 drafter: one layer over [token ; feature], trained on its own chain.

Source: arXiv 2503.01840.

Suffixes: T packed rows, M taps x D, D hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dspark.config import TappedSection
from dspark.drafters.chain.batch import PositionBatch
from dspark.drafters.chain.config import ChainConfig
from dspark.drafters.chain.drafter import ChainDrafter, ChainLayer
from dspark.drafters.fields import Fields
from dspark.maths.losses import DraftLoss, LossWeights, StepTotals
from dspark.targets.layers import RMSNorm

STEP_LOSS_DECAY = 0.8  # weight of training step j is this to the power j


class Eagle3Section(TappedSection):
    """`[drafter]` of Eagle3 drafters."""

    num_layers: int = Field(1, ge=1, description="draft layers")


@dataclass(frozen=True, kw_only=True)
class Eagle3Config(ChainConfig):
    """Shape of an Eagle3 drafter."""

    kind: ClassVar[str] = "eagle3"
    architecture: ClassVar[str] = "Qwen3Eagle3Model"

    def own_fields(self) -> dict[str, Any]:
        return {
            "ttt_length": self.block_size,
            "step_loss_decay": STEP_LOSS_DECAY,
            "draft_num_hidden_layers": self.num_layers,
        }

    @classmethod
    def read_own(cls, given: Fields) -> dict[str, Any]:
        return {"block_size": given.whole("ttt_length")}


class Eagle3Layer(ChainLayer):
    """Attention reads the normed embedding and the normed feature side by side."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__(config, 2 * config.hidden_size)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Eagle3Drafter(ChainDrafter):
    """Features are a projection of the target's taps, afterwards the layer's own output."""

    Config = Eagle3Config
    Recipe = Eagle3Section

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__(config, Eagle3Layer(config))
        size = config.hidden_size
        self.fc = nn.Linear(len(config.target_layer_ids) * size, size, bias=False)
        self._init_weights()

    def entry(self, taps_TM: Tensor) -> Tensor:
        return self.fc(taps_TM)

    def follow(self, output: Tensor) -> Tensor:
        return output

    def combine(self, embedded: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.layer
        assert isinstance(layer, Eagle3Layer)
        normed = [layer.input_layernorm(embedded), layer.hidden_norm(feature)]
        return torch.cat(normed, -1), feature

    def loss_weights(self, weights: LossWeights) -> LossWeights:
        """Cross-entropy with the target's distribution, 0.8 to the power of the step; the
        recipe's own weights do not count."""
        decay = -1 / math.log(STEP_LOSS_DECAY)
        return LossWeights(ce=0.0, tv=0.0, bce=0.0, decay=decay, soft=1.0)

    def loss(
        self, batch: PositionBatch, weights: LossWeights, totals: StepTotals | None = None
    ) -> DraftLoss:
        """-Σ_v p_t log p_d over all positions and steps."""
        return self.chain_loss(batch, self.loss_weights(weights), totals)
