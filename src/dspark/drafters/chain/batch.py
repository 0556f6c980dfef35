"""A training batch of chain drafters: every position of an answer (arXiv 2503.01840).

Suffixes: T rows of the drafter's context, Q of them that learn, K chain steps, N = Q·K, M width of
the target's feature, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.drafters.training_batch import moved


@dataclass(slots=True)
class PositionBatch:
    """Whole sequences end to end; row i of one pairs the target's feature with the next token.

    Attributes:
        lengths: rows of each sequence, its tokens less one.
        learners: of each sequence the first row that learns and how many do, one after the other.
        taps_TM: the target's taps, or final-normed last states, of every row.
        next_ids_T: the token after each row.
        positions_T: each row's position in its sequence.
        rows_Q: rows that learn: those from the last of the prompt on that have a label. Between
            the answers of a conversation are rows whose labels are not valid.
        tokens_QK: input token of each step, i + 1 + j at step j (0 behind the end).
        labels_QK: what step j should say, the token at i + 2 + j (0 where not valid).
        label_valid_AK: labels that exist, [Q, K].
        last_ND, log_norm_N: teacher states and normalisers at i + 1 + j.
    """

    lengths: list[int]
    learners: list[tuple[int, int]]
    taps_TM: Tensor
    next_ids_T: Tensor
    positions_T: Tensor
    rows_Q: Tensor
    tokens_QK: Tensor
    labels_QK: Tensor
    label_valid_AK: Tensor
    last_ND: Tensor
    log_norm_N: Tensor

    def to(self, device: torch.device) -> PositionBatch:
        """The batch with its tensors on another device."""
        return moved(self, device)
