"""What training batches are made of: answered prompts with the target's states.

Suffixes: T positions of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark.data.states import SequenceStates


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
