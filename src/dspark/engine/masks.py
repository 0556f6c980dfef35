"""Grammars applied to logits: of the target, and of drafts as they are made.

Verification stays what it is: p_t is the target's distribution among allowed tokens, p_d the
drafter's, so the text is distributed as plain decoding under the grammar.

Suffixes: R requests, N rows with logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.core import Batch, DraftBlock, Request, VerifyPlan


def has_grammar(requests: Sequence[Request]) -> bool:
    """Whether any of them keeps to a grammar."""
    return any(request.grammar is not None for request in requests)


class GrammarMasks:
    """Keeps drafts inside their requests' grammars (see `models.drafter.DraftMasks`).

    A draft token outside the grammar could only be rejected; drawing among allowed ones wastes
    no verification.

    Args:
        requests: those that are drafted.
        d2t: target id of every draft id, for a reduced draft vocabulary.
    """

    def __init__(self, requests: Sequence[Request], d2t: Tensor | None, steps: int) -> None:
        self._requests = [(r, one) for r, one in enumerate(requests) if one.grammar is not None]
        self._d2t = d2t
        self.lengths: list[int] = [steps] * len(requests)

    def apply(self, logits_RV: Tensor, drafted: Sequence[Tensor]) -> Tensor:
        """Rule out what may not stand in the next slot; a request that has nothing to say ends."""
        slot, logits_RV = len(drafted), logits_RV.clone()
        for r, request in self._requests:
            if self.lengths[r] < slot:
                continue
            assert request.grammar is not None
            allowed = request.grammar.allowed([int(ids[r]) for ids in drafted])
            assert allowed is not None, "the slots before were drawn from allowed tokens"
            allowed_V = torch.from_numpy(allowed).to(logits_RV.device)
            if self._d2t is not None:
                allowed_V = allowed_V[self._d2t]
            if not bool(allowed_V.any()):
                self.lengths[r] = slot
                continue
            logits_RV[r].masked_fill_(~allowed_V, float("-inf"))
        return logits_RV


def mask_target(
    logits_NV: Tensor, batch: Batch, drafts: DraftBlock | None, plan: VerifyPlan
) -> Tensor:
    """The target's logits with what each request's grammar rules out at -inf.

    Args:
        logits_NV: of answers that start, requests that are not drafted, anchors and drafts.
    """
    logits_NV, row = logits_NV.clone(), 0
    drafted = [[]] * len(batch.decode) if drafts is None else drafts.draft_ids_RK.tolist()
    drafted = [[] for _ in (*batch.starting, *batch.plain)] + drafted
    lengths = [0] * (len(drafted) - len(batch.decode)) + list(plan.verify_len)
    requests = [*batch.starting, *batch.plain, *batch.decode]
    for request, ids, length in zip(requests, drafted, lengths, strict=True):
        for k in range(length + 1):
            allowed = None if request.grammar is None else request.grammar.allowed(ids[:k])
            if allowed is not None:
                allowed_V = torch.from_numpy(allowed).to(logits_NV.device)
                logits_NV[row + k].masked_fill_(~allowed_V, float("-inf"))
        row += length + 1
    return logits_NV
