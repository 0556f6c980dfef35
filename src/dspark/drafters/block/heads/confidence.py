"""The confidence head (DSpark §3.2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConfidenceHead(nn.Module):
    """Logit of c_k from [h_k ; W_1[x_{k-1}]]: it never sees x_k itself (DSpark §3.2.1).

    Args:
        size: input features, D + r with the Markov embedding and D without.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, hidden: Tensor, previous: Tensor | None) -> Tensor:
        """Confidence logits [N] of hidden [N, D] and, if used, W_1 rows [N, r]."""
        x = hidden if previous is None else torch.cat([hidden, previous], -1)
        return self.proj(x).squeeze(-1)
