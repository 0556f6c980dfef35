"""The target's states of one sequence, as training and stores hold them.

Suffixes: T positions of a sequence, M auxiliary layers x D, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SequenceStates:
    """What training needs of the target for one sequence.

    Attributes:
        taps_TM: auxiliary hidden states of all positions, in the target's dtype; the
            final-normed last states for a drafter without auxiliary layers.
        last_TD: final-normed states of the completion's positions only (``first`` onwards).
        log_norm_T: logsumexp of the full-vocabulary logits at the same positions, float32.
        first: position of the completion's first token.
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
