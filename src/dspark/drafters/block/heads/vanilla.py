"""The first-order sequential head, and what all sequential heads share (DSpark §3.1).

Every sequential head reduces to features of r numbers a slot; the transition bias over the draft
vocabulary is ``W_2 · features``.

Suffixes: N any leading shape, A anchors, K block slots, C candidates, D hidden, r Markov rank,
V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MarkovHead(nn.Module):
    """First-order head: B_k = W_1[x_{k-1}] W_2 (DSpark §3.1, the default).

    Args:
        vocab_size: rows of W_1 (target vocabulary).
        out_vocab: rows of W_2 (draft vocabulary).
        rank: r.
        hidden_size: D, used by the subclasses.
        block_size: K, the most slots of a block; used by the subclasses.
    """

    def __init__(
        self, vocab_size: int, out_vocab: int, rank: int, hidden_size: int, block_size: int = 7
    ) -> None:
        super().__init__()
        self.rank = rank
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, out_vocab, bias=False)
        nn.init.normal_(self.markov_w1.weight, std=0.02)
        nn.init.normal_(self.markov_w2.weight, std=0.02)

    def previous(self, ids: Tensor) -> Tensor:
        """W_1 rows [N, r] of the tokens before each slot."""
        return self.markov_w1(ids)

    def start(self, rows: int, like: Tensor) -> Tensor | None:
        """State before the first slot: none for a head without memory."""
        return None

    def step(
        self, previous_Nr: Tensor, hidden_ND: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Features [N, r] of one slot and the state after it."""
        return previous_Nr, state

    def features(self, previous_AKr: Tensor, hidden_AKD: Tensor) -> Tensor:
        """Features of whole blocks [A, K, r] when the previous tokens are known (training)."""
        return self.step(previous_AKr, hidden_AKD, None)[0]

    def bias(self, features: Tensor) -> Tensor:
        """Transition bias [N, V] of features [N, r]."""
        return self.markov_w2(features)

    def bias_of(self, features_Nr: Tensor, ids_NC: Tensor) -> Tensor:
        """Transition bias [N, C] of some draft ids a row; W_2 must not be packed."""
        rows_NCr = self.markov_w2.weight[ids_NC]
        return torch.matmul(rows_NCr, features_Nr.to(rows_NCr.dtype)[..., None])[..., 0]

    def keep_rows(self) -> None:
        """Leave W_2 as rows to pick from when linear layers are packed (inference)."""
        weight = self.markov_w2.weight.detach()
        rows = nn.Embedding.from_pretrained(weight)
        self.markov_w2 = rows
