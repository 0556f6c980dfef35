"""What a drafter makes its training batches of: answered prompts with the target's states.

Suffixes: T positions of a sequence, M taps x D, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = TypeVar("Batch", bound=Any)


@dataclass(frozen=True, slots=True)
class SequenceStates:
    """What training needs of the target for one sequence.

    Attributes:
        taps_TM: taps of all positions, in the target's dtype; the final-normed last states for a
            drafter that taps no layer.
        last_TD: final-normed states of the answer's positions only (``first`` onwards).
        log_norm_T: logsumexp of the full-vocabulary logits at the same positions, float32.
        first: position of the answer's first token.
    """

    taps_TM: Tensor
    last_TD: Tensor
    log_norm_T: Tensor
    first: int

    @property
    def nbytes(self) -> int:
        """Memory held by states, in bytes; the normalisers beside them weigh next to nothing."""
        held = {t.untyped_storage().data_ptr(): t for t in (self.last_TD, self.taps_TM)}
        return sum(t.numel() * t.element_size() for t in held.values())


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One prompt with its answer, or a conversation with its answers.

    Attributes:
        key: name of the sequence, unique in the data set; seeds its draws.
        ids_T: int64 tokens of prompt and answer.
        states: what the target made of them.
        context: [start, end) of what is no answer, counted from the first answer's first token.
    """

    key: str
    ids_T: NDArray[np.int64]
    states: SequenceStates
    context: tuple[tuple[int, int], ...] = ()

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """Tokens that are learned: those of answers, [T]."""
        mask_T = np.arange(len(self.ids_T)) >= self.states.first
        for start, end in self.context:
            mask_T[self.states.first + start : self.states.first + end] = False
        return mask_T


@dataclass(frozen=True, slots=True)
class AnchorDraw:
    """How anchors are drawn: ``count`` a sequence, by seed and number of the pass (epoch)."""

    count: int
    seed: int
    epoch: int


class TrainingBatch(Protocol):
    """What the trainer asks of any batch."""

    label_valid_AK: Tensor

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch with its tensors on another device."""


def moved(batch: Batch, device: torch.device) -> Batch:
    """A dataclass of tensors and lists, the tensors on another device."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    tensors = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
    return replace(batch, **tensors)
