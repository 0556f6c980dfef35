"""Transition biases kept for the tokens that drafts came past lately.

A first-order head's bias ``W_2 · W_1[x]`` (DSpark §3.1) is a function of one token alone, and texts
repeat their tokens. On a CPU reading a kept row of V numbers is many times cheaper than reading
the r rows of V numbers of W_2 again in every slot.

Suffixes: R requests, K block slots, V draft vocabulary, X target vocabulary, N kept rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark import native
from dspark.drafters.block.heads import MarkovHead

KEPT_BYTES = 2**27  # 4,096 rows of a draft vocabulary of 16,384 in bfloat16
# Rows worked out at the start, and along with each that is missing: a few more take no longer than
# one, since reading W_2 is what takes the time.
_FIRST, _ALONG = 256, 7
_NOWHERE = -1


class Transitions:
    """Looks transition biases up, and works out those it does not have.

    Places belong to the lowest token ids at first, since tokenizers number common tokens first.
    Their rows are worked out bit by bit, some at the start and some with every token that is
    missing: all of them at once would take half a second. The token that was not needed for
    longest gives way.

    Args:
        head: a first-order head; its weights must not change while this is used.
        target_ids: [V] target id of each draft id; None where they are the same.
        kept_bytes: memory for rows; at least one row is kept.
    """

    def __init__(
        self, head: MarkovHead, target_ids: Tensor | None = None, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self.head = head
        self.target_ids = None if target_ids is None else target_ids.long().contiguous()
        weight, width = head.markov_w2.weight, head.markov_w2.out_features
        vocabulary = head.markov_w1.num_embeddings
        size = min(max(kept_bytes // (width * weight.element_size()), 1), vocabulary)
        self._rows_NV = torch.empty(size, width, dtype=weight.dtype)
        self._token_N = torch.arange(size)  # whose a place is, worked out or not
        self._place_X = torch.full((vocabulary,), _NOWHERE)
        self._begun = min(size, _FIRST)  # places from here on may be without their first rows
        first = self._token_N[: self._begun]
        self._rows_NV[: self._begun] = self._biases(first)
        self._place_X[: self._begun] = first
        self._turn = 0  # one for each look; rows remember their last
        self._used_N = -self._token_N  # common tokens shall stay

    @property
    def kept(self) -> set[int]:
        """Tokens whose rows are kept."""
        return set((self._place_X != _NOWHERE).nonzero().flatten().tolist())

    @torch.inference_mode()
    def _biases(self, tokens: Tensor) -> Tensor:
        return self.head.bias(self.head.previous(tokens))

    def after(self, ids_R: Tensor) -> Tensor:
        """Biases [R, V] of the slot after each token; read only, and valid until the next call."""
        self._turn += 1
        places_R = self._place_X[ids_R]
        self._used_N[places_R[places_R >= 0]] = self._turn
        if bool((places_R < 0).any()):
            if not self._keep(ids_R[places_R < 0].unique(), len(ids_R.unique())):
                return self._biases(ids_R)
            places_R = self._place_X[ids_R]
        if len(places_R) == 1:
            return self._rows_NV[int(places_R) :][:1]
        return self._rows_NV[places_R]

    def _keep(self, missing: Tensor, needed: int) -> bool:
        """Put rows of new tokens where unused ones lie; False where there is no room for all.

        Args:
            needed: different tokens of this look, the missing ones included.
        """
        if needed > len(self._rows_NV):
            return False
        places = self._used_N.topk(len(missing), largest=False).indices
        self._place_X[self._token_N[places]] = _NOWHERE
        self._place_X[missing], self._token_N[places] = places, missing
        along = self._along()
        rows = self._biases(torch.cat([missing, along]))
        self._rows_NV[places], self._rows_NV[along] = rows[: len(missing)], rows[len(missing) :]
        self._place_X[along] = along
        self._used_N[places] = self._turn
        return True

    def _along(self) -> Tensor:
        """The next tokens whose places wait for their first rows."""
        along = torch.arange(self._begun, min(self._begun + _ALONG, len(self._token_N)))
        self._begun += len(along)
        waiting = (self._token_N[along] == along) & (self._place_X[along] == _NOWHERE)
        return along[waiting]

    def can_follow(self, base_RKV: Tensor) -> bool:
        """Whether `follow` serves logits like these."""
        return (
            base_RKV.dtype is self._rows_NV.dtype
            and len(base_RKV) <= len(self._rows_NV)
            and native.serves(base_RKV)
        )

    def follow(self, base_RKV: Tensor, anchors_R: Tensor) -> Tensor:
        """Target ids [R, K + 1] of anchors and greedy blocks: the loop over slots as one call.

        Args:
            base_RKV: the drafter's logits without any bias.
        """
        requests, slots, _ = base_RKV.shape
        base_RKV = base_RKV.contiguous()
        ids_RK = torch.empty(requests, slots + 1, dtype=torch.int64)
        ids_RK[:, 0] = anchors_R
        done_R = torch.zeros(requests, dtype=torch.int64)
        while True:
            self._turn += 1
            native.follow(base_RKV, self._words(), ids_RK, done_R)
            open_R = done_R < slots
            if not bool(open_R.any()):
                return ids_RK
            missing = ids_RK[open_R, done_R[open_R]].unique()
            room = self._keep(missing, len(missing))
            assert room, "more requests than rows"

    def _words(self) -> native.Biases:
        targets = None if self.target_ids is None else self.target_ids.data_ptr()
        return native.Biases(
            self._rows_NV.data_ptr(),
            self._place_X.data_ptr(),
            targets,
            self._used_N.data_ptr(),
            self._turn,
        )
