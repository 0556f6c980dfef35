"""Log-probabilities of committed tokens, for the requests that ask for them.

Suffixes: N rows with logits, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dspark.core import Result, Span, TokenLogprobs


def with_logprobs(span: Span, result: Result, logits_NV: Tensor) -> Result:
    """The result with what the target thought of each new token, if the request asks for it.

    Args:
        logits_NV: of the whole step.
    """
    asked = span.request.params.logprobs
    if asked is None or result.next_id is None:
        return result
    ids = [*span.draft_ids[: result.accepted], result.next_id]
    first = span.logits.start
    return replace(result, logprobs=_of_rows(logits_NV[first : first + len(ids)], ids, asked))


def _of_rows(logits_NV: Tensor, ids: list[int], count: int) -> list[TokenLogprobs]:
    logs_NV = torch.log_softmax(logits_NV.float(), -1)
    values, places = logs_NV.topk(min(count, logs_NV.shape[1]))
    return [
        TokenLogprobs(float(log_V[token]), tuple(zip(best, top, strict=True)))
        for log_V, token, best, top in zip(
            logs_NV, ids, places.tolist(), values.tolist(), strict=True
        )
    ]
