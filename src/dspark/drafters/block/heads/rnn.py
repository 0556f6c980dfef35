"""Recurrent sequential heads: the paper's (DSpark eq. 6), and one that starts as the vanilla head.

Suffixes: N rows, A anchors, K block slots, D hidden, r Markov rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dspark.drafters.block.heads.vanilla import MarkovHead


class RNNHead(MarkovHead):
    """Recurrent head with a state of r numbers carried along the block (DSpark eq. 6)."""

    def __init__(
        self, vocab_size: int, out_vocab: int, rank: int, hidden_size: int, block_size: int = 7
    ) -> None:
        super().__init__(vocab_size, out_vocab, rank, hidden_size, block_size)
        self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def start(self, rows: int, like: Tensor) -> Tensor | None:
        return like.new_zeros(rows, self.rank)

    def step(
        self, previous_Nr: Tensor, hidden_ND: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert state is not None
        joint = self.joint_proj(torch.cat([state, previous_Nr, hidden_ND], -1))
        gate, candidate, output = joint.chunk(3, -1)
        keep = torch.sigmoid(gate)
        state = keep * state + (1 - keep) * torch.tanh(candidate)
        return torch.tanh(output), state

    def features(self, previous_AKr: Tensor, hidden_AKD: Tensor) -> Tensor:
        state, outs = self.start(len(previous_AKr), previous_AKr), []
        for k in range(previous_AKr.shape[1]):
            out, state = self.step(previous_AKr[:, k], hidden_AKD[:, k], state)
            outs.append(out)
        return torch.stack(outs, 1)


class ResidualRNNHead(RNNHead):
    """The same as an update of the vanilla head: W_1[x_{k-1}] + tanh(o_k), with o_k = 0 at first.

    The paper's form must learn anew what the token before says; this one begins with it.
    """

    def __init__(
        self, vocab_size: int, out_vocab: int, rank: int, hidden_size: int, block_size: int = 7
    ) -> None:
        super().__init__(vocab_size, out_vocab, rank, hidden_size, block_size)
        nn.init.zeros_(self.joint_proj.weight[2 * rank :])
        nn.init.zeros_(self.joint_proj.bias[2 * rank :])

    def step(
        self, previous_Nr: Tensor, hidden_ND: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        update, state = super().step(previous_Nr, hidden_ND, state)
        return previous_Nr + update, state
