"""The selector head: what the token before says, weighed by the slot's state (DFlash2)."""

from __future__ import annotations

from torch import Tensor, nn

from dspark.drafters.block.heads.vanilla import MarkovHead


class SelectorHead(MarkovHead):
    """Features W_1[x_{k-1}] ⊙ (1 + H h_k), H = 0 at first.

    DFlash2's score ⟨A(a) ⊙ H(h), B(b)⟩ of token b after a, started as the vanilla head and not at
    nothing; it is made for few candidates.
    """

    def __init__(
        self, vocab_size: int, out_vocab: int, rank: int, hidden_size: int, block_size: int = 7
    ) -> None:
        super().__init__(vocab_size, out_vocab, rank, hidden_size, block_size)
        self.state_proj = nn.Linear(hidden_size, rank)
        nn.init.zeros_(self.state_proj.weight)
        nn.init.zeros_(self.state_proj.bias)

    def step(
        self, previous_Nr: Tensor, hidden_ND: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        weighed = 1 + self.state_proj(hidden_ND)
        return previous_Nr * weighed.to(previous_Nr.dtype), state
