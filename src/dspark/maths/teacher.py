"""The target as a teacher: its distributions made again from states, a few rows at a time.

Suffixes: N slots in one row dimension, C candidates, D hidden, V draft vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Teacher:
    """What the target says at each slot, without its V-sized logits.

    Attributes:
        last_ND: final-normed last state at position anchor + k - 1.
        log_norm_N: logsumexp of the target's full-vocabulary logits there, float32, so that
            probabilities over a reduced vocabulary are never renormalised.
        head_VD: rows of the target's head for the draft vocabulary.
        softcap: the target's logit softcap, or None.
    """

    last_ND: Tensor
    log_norm_N: Tensor
    head_VD: Tensor
    softcap: float | None = None

    def logits(self, part: slice) -> Tensor:
        """The target's logits over the draft vocabulary for some rows, [N, V]."""
        logits = F.linear(self.last_ND[part].to(self.head_VD.dtype), self.head_VD)
        return softcapped(logits, self.softcap)[0]

    def logits_of(self, part: slice, ids_NC: Tensor) -> Tensor:
        """The same for some draft ids a row, [N, C] float32."""
        last_ND = self.last_ND[part].to(self.head_VD.dtype)
        logits = torch.matmul(self.head_VD[ids_NC], last_ND[..., None])[..., 0]
        return softcapped(logits.float(), self.softcap)[0]


def softcapped(logits: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Capped logits and d(capped)/d(logits), which is None without a cap."""
    if cap is None:
        return logits, None
    squashed = torch.tanh(logits.float() / cap)
    return squashed * cap, 1 - squashed.square()
