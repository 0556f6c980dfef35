"""Log-probabilities of committed tokens, for the requests that ask for them.

Suffixes: N rows with logits, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.core import Batch, DraftBlock, Request, TokenLogprobs, Verdict, VerifyPlan


def logprobs(
    batch: Batch, drafts: DraftBlock | None, plan: VerifyPlan, verdict: Verdict, logits_NV: Tensor
) -> dict[int, list[TokenLogprobs]]:
    """What the target thought of each new token, by id of the requests that ask.

    Args:
        logits_NV: of answers that start, requests that are not drafted, anchors and drafts.
    """
    told, row = {}, 0
    drafted = [] if drafts is None else drafts.draft_ids_RK.tolist()
    tokens = [[token] for token in (*verdict.first_id, *verdict.plain_id)]
    lengths = [0] * len(tokens) + list(plan.verify_len)
    for r, (accepted, next_id) in enumerate(zip(verdict.accepted, verdict.next_id, strict=True)):
        tokens.append([*(drafted[r][:accepted] if drafted else []), next_id])
    requests: list[Request] = [*batch.starting, *batch.plain, *batch.decode]
    for request, ids, length in zip(requests, tokens, lengths, strict=True):
        if request.params.logprobs is not None:
            rows_NV = logits_NV[row : row + len(ids)]
            told[request.id] = _of_rows(rows_NV, ids, request.params.logprobs)
        row += length + 1
    return told


def _of_rows(logits_NV: Tensor, ids: list[int], count: int) -> list[TokenLogprobs]:
    logs_NV = torch.log_softmax(logits_NV.float(), -1)
    values, places = logs_NV.topk(min(count, logs_NV.shape[1]))
    return [
        TokenLogprobs(float(log_V[token]), tuple(zip(best, top, strict=True)))
        for log_V, token, best, top in zip(
            logs_NV, ids, places.tolist(), values.tolist(), strict=True
        )
    ]
