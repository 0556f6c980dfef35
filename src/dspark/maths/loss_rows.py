"""CE, TV and their gradient for some slots, as one function that a compiler can fuse.

On a GPU the losses of §3.3 are bound by memory: run one operation after the other, V-sized float32
tensors are read and written some thirty times, fused three times. `draft_loss` therefore takes
this form there and the in-place one, which suits a processor's cache, elsewhere.

Suffixes: N slots, V draft vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

RowTerms = tuple[Tensor, Tensor, Tensor | None]
_TINY_LOG = -69.0  # about the log of 1e-30, the least probability that a loss can see


def row_terms(
    logits_NV: Tensor,
    teacher_NV: Tensor,
    log_norm_N: Tensor,
    labels_N: Tensor,
    weight_N: Tensor,
    ce: float,
    tv: float,
    soft: float,
    wants_grad: bool,
) -> RowTerms:
    """Cross-entropy, overlap c* and the gradient of the weighted loss by the draft's logits.

    Args:
        logits_NV: draft logits, transition bias included.
        teacher_NV: the target's logits over the draft vocabulary.
        log_norm_N: logsumexp of the target's logits over its whole vocabulary.
        labels_N: draft ids, -1 where the label lies outside the draft vocabulary.
        weight_N: weight of each slot in the loss.
        ce, tv, soft: weights of the terms (:class:`dspark.maths.losses.LossWeights`).

    Returns:
        (CE [N], or the soft one where ``soft`` is set; overlap [N]; gradient [N, V] in the
        logits' dtype, or None).
    """
    log_d = torch.log_softmax(logits_NV.float(), -1)
    p_d = log_d.exp()
    p_t = (teacher_NV.float() - log_norm_N[:, None]).exp()
    overlap_N = torch.minimum(p_d, p_t).sum(-1)
    known_N = labels_N >= 0
    index_N1 = labels_N.clamp(min=0)[:, None]
    if soft:
        ce_N = -(p_t * log_d.clamp(min=_TINY_LOG)).sum(-1)
    else:
        own_N = log_d.gather(1, index_N1)[:, 0].clamp(min=_TINY_LOG)
        ce_N = torch.where(known_N, -own_N, 0.0)
    if not wants_grad:
        return ce_N, overlap_N, None
    sign = torch.sign(p_d - p_t)
    inner = (sign * p_d).sum(-1, keepdim=True)
    weight = weight_N[:, None]
    ce_N1 = ce * weight * known_N[:, None]
    grad = ((sign - inner) * (tv * weight) + ce_N1) * p_d
    places = torch.arange(logits_NV.shape[1], device=logits_NV.device)
    grad = grad - torch.where(places == index_N1, ce_N1, 0.0)
    if soft:
        mass = p_t.sum(-1, keepdim=True)
        grad = grad + (soft * weight) * (mass * p_d - p_t)
    return ce_N, overlap_N, grad.to(logits_NV.dtype)


@cache
def fused_row_terms() -> Callable[..., RowTerms]:
    """:func:`row_terms` compiled, or as it is where this machine cannot compile."""
    compiled: Callable[..., RowTerms] = torch.compile(row_terms)
    works = [True]

    def call(*args: Any) -> RowTerms:
        if works[0]:
            try:
                return compiled(*args)
            except Exception as error:  # compilers fail in many ways, and none may end a run
                works[0] = False
                why = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(f"the loss runs uncompiled, which is slower: {why[0]}", stacklevel=2)
        return row_terms(*args)

    return call
