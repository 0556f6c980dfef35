"""Transition biases kept for the tokens that drafts came past lately.

A first-order head's bias ``W_2 · W_1[x]`` (DSpark §3.1) is a function of one token alone, and texts
repeat their tokens. On a CPU reading a kept row of V numbers is many times cheaper than reading
the r rows of V numbers of W_2 again in every slot.

Suffixes: R requests, V draft vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.models.heads import MarkovHead

KEPT_BYTES = 2**26  # 2,048 rows of a draft vocabulary of 16,384 in bfloat16


class Transitions:
    """Looks transition biases up, and works out those it does not have.

    Args:
        head: a first-order head; its weights must not change while this is used.
        kept_bytes: memory for rows; at least one row is kept.
    """

    def __init__(self, head: MarkovHead, kept_bytes: int = KEPT_BYTES) -> None:
        self.head = head
        weight = head.markov_w2.weight
        width = head.markov_w2.out_features
        size = max(kept_bytes // (width * weight.element_size()), 1)
        size = min(size, head.markov_w1.num_embeddings)
        # Written at once: the first touch of a page takes longer than what it is to hold.
        self._rows = torch.empty(size, width, dtype=weight.dtype).zero_()
        self._place: dict[int, int] = {}  # by token
        self._token: list[int | None] = [None] * size  # by place
        self._next = 0

    def after(self, ids_R: Tensor) -> Tensor:
        """Biases [R, V] of the slot after each token; read only, and valid until the next call."""
        ids = ids_R.tolist()
        missing = [token for token in dict.fromkeys(ids) if token not in self._place]
        if missing and not self._keep(missing, set(ids)):
            return self.head.bias(self.head.previous(ids_R))
        places = [self._place[token] for token in ids]
        if len(places) == 1:
            return self._rows[places[0] : places[0] + 1]
        return self._rows[places]

    def _keep(self, missing: list[int], needed: set[int]) -> bool:
        """Put rows of new tokens where the oldest lie; False where there is no room for all."""
        if len(needed) > len(self._token):
            return False
        places: list[int] = []
        while len(places) < len(missing):
            if self._token[self._next] not in needed:
                places.append(self._next)
            self._next = (self._next + 1) % len(self._token)
        tokens = torch.tensor(missing, device=self._rows.device)
        biases = self.head.bias(self.head.previous(tokens))
        for place, token, bias in zip(places, missing, biases, strict=True):
            self._rows[place] = bias
            old = self._token[place]
            if old is not None:
                del self._place[old]
            self._token[place], self._place[token] = token, place
        return True
