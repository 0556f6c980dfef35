"""From the target's logits to accepted counts and drawn tokens, some rows at a time.

A row of probabilities is as long as the vocabulary, so a step of many requests would fill more
memory than any processor's cache, and pages of it fresh from the system each time. Rows are
shaped, judged and dropped in parts. What comes out does not depend on the parts.

Suffixes: R requests, K block slots, N rows with logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark import native
from dspark.core import (
    BLOCK,
    DEFAULT_RULE,
    DraftBlock,
    Request,
    SamplingParams,
    Span,
    Verdict,
    logits_of,
    requests_of,
)
from dspark.maths.block_verification import verify_block
from dspark.maths.sampling import check_rows, draw, probabilities
from dspark.maths.verification import verify, verify_greedy

# Probabilities held at a time: on a CPU few enough that the steps meet them in its cache.
_CHUNK = {"cpu": 2**22, "cuda": 2**26}

# Requests, the target's probabilities [R, K + 1, V] (void beyond a verify length), drafts, verify
# lengths, verdict: told of all drafts judged above temperature 0, some requests at a time.
OnVerdict = Callable[[Sequence[Request], Tensor, DraftBlock, Sequence[int], Verdict], None]


def judge_greedy(spans: Sequence[Span], logits_NV: Tensor, drafts: DraftBlock) -> Verdict:
    """Drafts against the target's best tokens; see :func:`verify_greedy`.

    Args:
        spans: of the drafted requests.
        logits_NV: of the whole step.
    """
    ids_RK, lengths = drafts.draft_ids_RK, [span.verified for span in spans]
    best_RK = _rectangle(best(logits_NV[logits_of(spans)]), lengths, ids_RK.shape[1])
    return verify_greedy(best_RK, ids_RK, lengths)


def judge_sampled(
    spans: Sequence[Span],
    logits_NV: Tensor,
    drafts: DraftBlock,
    accept_u_RK: NDArray[np.float64],
    final_u_R: NDArray[np.float64],
    d2t: Tensor | None,
    on_verdict: OnVerdict | None = None,
    rule: str = DEFAULT_RULE,
) -> Verdict:
    """Drafts against the target's distributions; see :func:`verify` and :func:`verify_block`.

    Args:
        spans: of the drafted requests.
        logits_NV: of the whole step.
        accept_u_RK, final_u_R: uniforms of the tests, and of the correction or bonus.
        d2t: target ids of the draft vocabulary, if it is a part.
        on_verdict: watches.
        rule: of `core.RULES`.
    """
    judge = verify_block if rule == BLOCK else verify
    assert drafts.draft_probs_RKV is not None
    K, accepted, next_id = drafts.draft_ids_RK.shape[1], list[int](), list[int]()
    for part in _parts(spans, _rows_at_once(logits_NV)):
        mine = spans[part]
        lengths = [span.verified for span in mine]
        params = [span.request.params for span in mine for _ in span.logits]
        target_RKV = _rectangle(_probabilities(logits_NV[logits_of(mine)], params), lengths, K)
        ids_RK, draft_RKV = drafts.draft_ids_RK[part], drafts.draft_probs_RKV[part]
        verdict = judge(
            target_RKV, draft_RKV, ids_RK, lengths, accept_u_RK[part], final_u_R[part], d2t
        )
        accepted += verdict.accepted
        next_id += verdict.next_id
        if on_verdict is not None:
            clues_RKC = None if drafts.clues_RKC is None else drafts.clues_RKC[part]
            seen = DraftBlock(ids_RK, draft_RKV, clues_RKC=clues_RKC)
            on_verdict(requests_of(mine), target_RKV, seen, lengths, verdict)
    return Verdict(accepted, next_id)


def best(logits_NV: Tensor) -> Tensor:
    """First largest logit of each row; float32, because arg-max over bfloat16 is slow on a CPU.

    Raises:
        EngineError: a row has no finite largest logit.
    """
    if native.serves(logits_NV):
        best_N = native.argmax(logits_NV)
        check_rows(best_N >= 0)
        return best_N
    parts = logits_NV.split(_rows_at_once(logits_NV))
    best_N = torch.cat([part.float().argmax(-1) for part in parts])
    check_rows(logits_NV.gather(-1, best_N[:, None])[:, 0].isfinite())
    return best_N


def draw_each(
    logits_NV: Tensor, params: Sequence[SamplingParams], u_N: NDArray[np.float64]
) -> list[int]:
    """One token a row, drawn under the row's own parameters."""
    tokens: list[int] = []
    rows = _rows_at_once(logits_NV)
    for start in range(0, len(params), rows):
        part = slice(start, start + rows)
        tokens += draw(_probabilities(logits_NV[part], params[part]), u_N[part]).tolist()
    return tokens


def _rows_at_once(logits_NV: Tensor) -> int:
    return max(_CHUNK[logits_NV.device.type] // logits_NV.shape[1], 1)


def _parts(spans: Sequence[Span], rows: int) -> Iterator[slice]:
    """Neighbouring spans with at most so many rows together, or one alone."""
    first = held = 0
    for r, span in enumerate(spans):
        if r > first and held + len(span.logits) > rows:
            yield slice(first, r)
            first, held = r, 0
        held += len(span.logits)
    if first < len(spans):
        yield slice(first, len(spans))


def _probabilities(logits_NV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    return probabilities(
        logits_NV,
        torch.tensor([p.temperature for p in params]),
        torch.tensor([p.top_k for p in params]),
        torch.tensor([p.top_p for p in params], dtype=torch.float64),
    )


def _rectangle(x_N: Tensor, verify_len: Sequence[int], K: int) -> Tensor:
    """Ragged rows, 1 + verify length of each request, as [R, K + 1, ...]; the rest undefined."""
    R, width = len(verify_len), K + 1
    if len(x_N) == R * width:
        return x_N.view(R, width, *x_N.shape[1:])
    rows = [r * width + k for r, length in enumerate(verify_len) for k in range(length + 1)]
    full = x_N.new_empty(R * width, *x_N.shape[1:])
    full[torch.tensor(rows, device=x_N.device)] = x_N
    return full.view(R, width, *x_N.shape[1:])
