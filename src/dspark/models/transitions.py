"""Transition biases kept for the tokens that drafts came past lately.

A first-order head's bias ``W_2 · W_1[x]`` (DSpark §3.1) is a function of one token alone, and texts
repeat their tokens. On a CPU reading a kept row of V numbers is many times cheaper than reading
the r rows of V numbers of W_2 again in every slot.

Suffixes: R requests, V draft vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from dspark.models.heads import MarkovHead

KEPT_BYTES = 2**27  # 4,096 rows of a draft vocabulary of 16,384 in bfloat16
_AT_ONCE = 256  # rows worked out together at the start


class Transitions:
    """Looks transition biases up, and works out those it does not have.

    It starts full, with the lowest token ids, since tokenizers number common tokens first; the
    token that was not needed for longest gives way.

    Args:
        head: a first-order head; its weights must not change while this is used.
        kept_bytes: memory for rows; at least one row is kept.
    """

    def __init__(self, head: MarkovHead, kept_bytes: int = KEPT_BYTES) -> None:
        self.head = head
        weight, width = head.markov_w2.weight, head.markov_w2.out_features
        size = max(kept_bytes // (width * weight.element_size()), 1)
        size = min(size, head.markov_w1.num_embeddings)
        self._rows = torch.empty(size, width, dtype=weight.dtype)
        for tokens in torch.arange(size).split(_AT_ONCE):
            self._rows[tokens[0] : tokens[-1] + 1] = self._biases(tokens)
        # Places of tokens, the longest unused first; common tokens shall stay.
        self._place = OrderedDict((token, token) for token in reversed(range(size)))

    @torch.inference_mode()
    def _biases(self, tokens: Tensor) -> Tensor:
        return self.head.bias(self.head.previous(tokens))

    def after(self, ids_R: Tensor) -> Tensor:
        """Biases [R, V] of the slot after each token; read only, and valid until the next call."""
        ids = ids_R.tolist()
        missing = []
        for token in dict.fromkeys(ids):
            if token in self._place:
                self._place.move_to_end(token)
            else:
                missing.append(token)
        if missing and not self._keep(missing, len(set(ids))):
            return self._biases(ids_R)
        places = [self._place[token] for token in ids]
        if len(places) == 1:
            return self._rows[places[0] : places[0] + 1]
        return self._rows[places]

    def _keep(self, missing: list[int], needed: int) -> bool:
        """Put rows of new tokens where unused ones lie; False where there is no room for all."""
        if needed > len(self._rows):
            return False
        for token, bias in zip(missing, self._biases(torch.tensor(missing)), strict=True):
            _, place = self._place.popitem(last=False)  # never one of this call: those came last
            self._place[token] = place
            self._rows[place] = bias
        return True
