"""The refined head: the vanilla head and an update that sees the whole block before each slot.

Ours, of known parts: the tokens before a slot are mixed by a learned triangular table, as in XPress
(arXiv 2608.02438), and a gated unit reads them beside h_k, as in Domino.

Suffixes: N rows, A anchors, K and J block slots, D hidden, r Markov rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dspark.drafters.block.heads.vanilla import MarkovHead


class RefinedHead(MarkovHead):
    """Features e_k + W_o (silu(g) ⊙ u), [g; u] = W [h_k ; e_k ; m_k] + b, W_o = 0 at first.

    e_k = W_1[x_{k-1}], and m_k = Σ_{j<k} L_kj ⊙ e_j mixes the tokens before that one, by a table
    of K x K x r numbers that starts as their mean.
    """

    def __init__(
        self, vocab_size: int, out_vocab: int, rank: int, hidden_size: int, block_size: int = 7
    ) -> None:
        super().__init__(vocab_size, out_vocab, rank, hidden_size, block_size)
        self.gate_up = nn.Linear(hidden_size + 2 * rank, 2 * rank)
        self.update = nn.Linear(rank, rank, bias=False)
        nn.init.zeros_(self.update.weight)
        mean = torch.ones(block_size, block_size).tril(-1)
        mean = mean / mean.sum(1, keepdim=True).clamp(min=1)
        self.mix = nn.Parameter(mean[..., None].repeat(1, 1, rank))

    def start(self, rows: int, like: Tensor) -> Tensor | None:
        """The state holds e of all slots so far, [N, J, r]."""
        return like.new_zeros(rows, 0, self.rank)

    def step(
        self, previous_Nr: Tensor, hidden_ND: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert state is not None
        slot = state.shape[1]
        mixed_Nr = (self.mix[slot, :slot].to(state.dtype) * state).sum(1)
        features = self._refine(previous_Nr, hidden_ND, mixed_Nr)
        return features, torch.cat([state, previous_Nr[:, None]], 1)

    def features(self, previous_AKr: Tensor, hidden_AKD: Tensor) -> Tensor:
        slots = previous_AKr.shape[1]
        mix_KJr = self.mix[:slots, :slots].to(previous_AKr.dtype)
        mix_KJr = mix_KJr * mix_KJr.new_ones(slots, slots).tril(-1)[..., None]
        mixed_AKr = torch.einsum("kjr,ajr->akr", mix_KJr, previous_AKr)
        return self._refine(previous_AKr, hidden_AKD, mixed_AKr)

    def _refine(self, previous: Tensor, hidden: Tensor, mixed: Tensor) -> Tensor:
        seen = torch.cat([hidden, previous, mixed.to(previous.dtype)], -1)
        gate, up = self.gate_up(seen).chunk(2, -1)
        return previous + self.update(F.silu(gate) * up).to(previous.dtype)
