"""Grammars applied to logits: of the target, and of drafts as they are made.

Verification stays what it is: p_t is the target's distribution among allowed tokens, p_d the
drafter's, so the text is distributed as plain decoding under the grammar.

A grammar that fails or contradicts itself ends its own request alone: the error names it, and is
raised before a step has changed any text.

Suffixes: R requests, N rows with logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark.core import Request, StepLayout
from dspark.errors import EngineError


def has_grammar(requests: Sequence[Request]) -> bool:
    """Whether any of them keeps to a grammar."""
    return any(request.grammar is not None for request in requests)


def allowed_next(request: Request, ids: Sequence[int]) -> NDArray[np.bool_] | None:
    """Tokens [V] that a request's grammar lets follow its answer and then ``ids``.

    The grammar takes in here what was committed since it was last asked, not when that was
    committed: by then others' texts may have changed, and the step could not be repeated.

    Returns:
        None where ``ids`` themselves are not allowed.

    Raises:
        EngineError: the grammar fails or leaves no way on; it names the request.
    """
    assert request.grammar is not None
    try:
        if len(request.output_ids) > request.grammar_len:
            request.grammar.advance(request.output_ids[request.grammar_len :])
            request.grammar_len = len(request.output_ids)
        allowed = request.grammar.allowed(ids)
    except Exception as error:  # whatever it is, the other requests have no part in it
        raise _failed(request, f"{type(error).__name__}: {error}") from error
    if allowed is None and not ids:
        raise _failed(request, "it refuses what it allowed before")
    if allowed is not None and not allowed.any():
        raise _failed(request, "it allows no token")
    return allowed


def _failed(request: Request, found: str) -> EngineError:
    error = EngineError("The grammar of an answer failed", found=found)
    error.requests = (request.id,)
    return error


class GrammarMasks:
    """Keeps drafts inside their requests' grammars (see `drafters.drafter.DraftMasks`).

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
        """Rule out what may not stand in the next slot; a request that has nothing to say ends.

        Raises:
            EngineError: a grammar fails or contradicts itself; it names the request.
        """
        slot, logits_RV = len(drafted), logits_RV.clone()
        for r, request in self._requests:
            if self.lengths[r] < slot:
                continue
            allowed = allowed_next(request, [int(ids[r]) for ids in drafted])
            if allowed is None:  # the slots before were drawn from allowed tokens
                raise _failed(request, "it refuses a draft that its masks allowed")
            allowed_V = torch.from_numpy(allowed).to(logits_RV.device)
            if self._d2t is not None:
                allowed_V = allowed_V[self._d2t]
            if not bool(allowed_V.any()):
                self.lengths[r] = slot
                continue
            logits_RV[r].masked_fill_(~allowed_V, float("-inf"))
        return logits_RV


def mask_target(logits_NV: Tensor, layout: StepLayout) -> Tensor:
    """The target's logits with what each request's grammar rules out at -inf.

    Raises:
        EngineError: a grammar fails or contradicts itself; it names the request.
    """
    logits_NV = logits_NV.clone()
    for span in layout.spans:
        if span.request.grammar is None:
            continue
        for k, row in enumerate(span.logits):
            allowed = allowed_next(span.request, span.draft_ids[:k])
            if allowed is not None:
                allowed_V = torch.from_numpy(allowed).to(logits_NV.device)
                logits_NV[row].masked_fill_(~allowed_V, float("-inf"))
    return logits_NV
