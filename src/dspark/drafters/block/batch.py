"""A training batch of block drafters: anchors drawn from whole sequences (DSpark §3.3).

Suffixes: A anchors, K block slots, T context rows, N = A·K slots, M taps x D, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.drafters.training_batch import moved


@dataclass(slots=True)
class AnchorBatch:
    """Whole sequences end to end with the anchors drawn from them.

    Attributes:
        lengths: tokens of each sequence.
        taps_TM: the target's taps of every position.
        anchors: sorted anchor positions within each sequence; they stay on the host.
        anchor_ids_A: the anchor tokens.
        labels_AK: tokens after each anchor (target ids; 0 where not valid).
        label_valid_AK: labels that exist.
        last_ND, log_norm_N: teacher states and normalisers at positions anchor + k - 1.
        draws_AK: uniforms in [0, 1), float64, for what a loss draws.
    """

    lengths: list[int]
    taps_TM: Tensor
    anchors: list[Tensor]
    anchor_ids_A: Tensor
    labels_AK: Tensor
    label_valid_AK: Tensor
    last_ND: Tensor
    log_norm_N: Tensor
    draws_AK: Tensor

    def to(self, device: torch.device) -> AnchorBatch:
        """The batch with its tensors on another device."""
        return moved(self, device)
