"""The gated sequential head (DSpark §3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dspark.drafters.block.heads.vanilla import MarkovHead


class GatedMarkovHead(MarkovHead):
    """Markov features scaled by σ(W [h_k ; W_1[x_{k-1}]] + b), elementwise (DSpark §3.1)."""

    def __init__(
        self, vocab_size: int, out_vocab: int, rank: int, hidden_size: int, block_size: int = 7
    ) -> None:
        super().__init__(vocab_size, out_vocab, rank, hidden_size, block_size)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def step(
        self, previous_Nr: Tensor, hidden_ND: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        gate = self.gate_proj(torch.cat([hidden_ND, previous_Nr], -1))
        return torch.sigmoid(gate) * previous_Nr, state
