"""The terms of some slots and their gradient by the draft's logits, in two forms.

On a GPU the losses of §3.3 are bound by memory: run one operation after the other, V-sized float32
tensors are read and written some thirty times, fused three times. `draft_loss` therefore takes
:func:`row_terms` there, as one function that a compiler can fuse, and :func:`row_terms_in_place`,
which suits a processor's cache, elsewhere.

With z the draft's logits, p_d and p_t the distributions and s = sign(p_d - p_t):
    dTV/dz = p_d (s - <s, p_d>),  dCE/dz = p_d - onehot(label),
    dSoft/dz = dKL/dz = m p_d - p_t with m = Σ_v p_t, the mass inside the draft vocabulary.

Suffixes: N slots, V draft vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dspark.maths.loss_weights import (
    LossWeights,
    Scales,
    SlotShares,
    Terms,
    log_overlap,
    mean_length,
    pulls,
    slot_weights,
)

_TINY = 1e-30  # the least probability that a loss can see
_TINY_LOG = -69.0  # about its logarithm


class RowTerms(NamedTuple):
    """What some slots say.

    Attributes:
        ce_N: cross-entropy with the label (0 where it is unknown), or with the target's
            distribution where ``soft`` has a weight.
        overlap_N: c* = Σ_v min(p_d, p_t).
        own_N: p_d(label), 0 where it is unknown.
        grad_NV: of the weighted loss by the draft's logits, where asked for.
        kl_N: KL(p_t ‖ p_d) over the draft vocabulary, where it has a weight.
        greedy_N: cross-entropy with the target's arg-max, where it has a weight.
    """

    ce_N: Tensor
    overlap_N: Tensor
    own_N: Tensor
    grad_NV: Tensor | None = None
    kl_N: Tensor | None = None
    greedy_N: Tensor | None = None


def best_of(teacher_p_NV: Tensor) -> tuple[Tensor, Tensor]:
    """The target's arg-max among the draft vocabulary, and whether it is its arg-max at all.

    It surely is where its probability is no less than all that lies outside the draft vocabulary;
    where it may not be, a greedy draft of this slot can hardly be right.

    Returns:
        draft ids [N], bool [N].
    """
    best_N, ids_N = teacher_p_NV.max(-1)
    return ids_N, best_N >= 1 - teacher_p_NV.sum(-1) - 1e-6


def row_terms_in_place(
    logits_NV: Tensor,
    teacher_NV: Tensor,
    log_norm_N: Tensor,
    labels_N: Tensor,
    shares: SlotShares,
    terms: Terms,
    scales: Scales,
    block: int,
    wants_grad: bool,
) -> RowTerms:
    """What :func:`row_terms` says, in place as far as it goes."""
    p_d = torch.softmax(logits_NV, -1, dtype=torch.float32)
    p_t = teacher_NV.sub(log_norm_N[:, None]).exp_()
    known = labels_N >= 0
    index = labels_N.clamp(min=0)[:, None]
    own = p_d.gather(1, index)[:, 0].clamp(min=_TINY)
    ce = torch.where(known, -own.log(), 0.0)
    own = torch.where(known, own, 0.0)
    overlap = torch.minimum(p_d, p_t).sum(-1)
    kl = greedy = best = sure = None
    if terms.soft or terms.kl:
        soft_ce = -(p_t * p_d.clamp(min=_TINY).log()).sum(-1)
        ce = soft_ce if terms.soft else ce
        kl = torch.special.xlogy(p_t, p_t).sum(-1) + soft_ce if terms.kl else None
    if terms.greedy:
        best, sure = best_of(p_t)
        greedy = torch.where(sure, -p_d.gather(1, best[:, None])[:, 0].clamp(min=_TINY).log(), 0.0)
    if not wants_grad:
        return RowTerms(ce, overlap, own, None, kl, greedy)
    pull = pulls(shares, own, overlap, terms, scales, block)
    soft = None if pull.soft is None else pull.soft[:, None] * p_t
    sign = torch.sub(p_d, p_t, out=p_t).sign_()
    inner = (sign * p_d).sum(-1, keepdim=True)
    ce_row = pull.ce[:, None] * known[:, None]
    grad = sign.sub_(inner).mul_(pull.tv[:, None]).add_(ce_row)
    if pull.greedy is not None and best is not None and sure is not None:
        greedy_row = (pull.greedy * sure)[:, None]
        grad = grad.add_(greedy_row).mul_(p_d).scatter_add_(1, best[:, None], -greedy_row)
    else:
        grad = grad.mul_(p_d)
    grad.scatter_add_(1, index, -ce_row)
    if soft is not None:
        grad.addcmul_(p_d, soft.sum(-1, keepdim=True)).sub_(soft)
    return RowTerms(ce, overlap, own, grad, kl, greedy)


def row_terms(
    logits_NV: Tensor,
    teacher_NV: Tensor,
    log_norm_N: Tensor,
    labels_N: Tensor,
    shares: SlotShares,
    terms: Terms,
    scales: Scales,
    block: int,
    wants_grad: bool,
) -> RowTerms:
    """Terms and gradient of some slots.

    Args:
        logits_NV: draft logits, transition bias included.
        teacher_NV: the target's logits over the draft vocabulary.
        log_norm_N: logsumexp of the target's logits over its whole vocabulary.
        labels_N: draft ids, -1 where the label lies outside the draft vocabulary.
        shares: what each slot counts.
        terms, scales: which terms there are and how strongly they pull.
        block: K; rows hold whole blocks where ``terms.couples``.
    """
    log_d = torch.log_softmax(logits_NV.float(), -1)
    p_d = log_d.exp()
    log_t = teacher_NV.float() - log_norm_N[:, None]
    p_t = log_t.exp()
    overlap_N = torch.minimum(p_d, p_t).sum(-1)
    known_N = labels_N >= 0
    index_N1 = labels_N.clamp(min=0)[:, None]
    own_log_N = log_d.gather(1, index_N1)[:, 0].clamp(min=_TINY_LOG)
    ce_N = torch.where(known_N, -own_log_N, 0.0)
    own_N = torch.where(known_N, own_log_N.exp(), 0.0)
    kl_N = greedy_N = best_N = sure_N = None
    if terms.soft or terms.kl:
        soft_N = -(p_t * log_d.clamp(min=_TINY_LOG)).sum(-1)
        ce_N = soft_N if terms.soft else ce_N
        kl_N = torch.special.xlogy(p_t, p_t).sum(-1) + soft_N if terms.kl else None
    if terms.greedy:
        best_N, sure_N = best_of(p_t)
        best_log_N = log_d.gather(1, best_N[:, None])[:, 0].clamp(min=_TINY_LOG)
        greedy_N = torch.where(sure_N, -best_log_N, 0.0)
    if not wants_grad:
        return RowTerms(ce_N, overlap_N, own_N, None, kl_N, greedy_N)
    pull = pulls(shares, own_N, overlap_N, terms, scales, block)
    sign = torch.sign(p_d - p_t)
    inner = (sign * p_d).sum(-1, keepdim=True)
    ce_N1 = (pull.ce * known_N)[:, None]
    grad = ((sign - inner) * pull.tv[:, None] + ce_N1) * p_d
    places = torch.arange(logits_NV.shape[1], device=logits_NV.device)
    grad = grad - torch.where(places == index_N1, ce_N1, 0.0)
    if pull.greedy is not None and best_N is not None and sure_N is not None:
        greedy_N1 = (pull.greedy * sure_N)[:, None]
        grad = grad + greedy_N1 * (p_d - (places == best_N[:, None]).float())
    if pull.soft is not None:
        mass = p_t.sum(-1, keepdim=True)
        grad = grad + pull.soft[:, None] * (mass * p_d - p_t)
    return RowTerms(ce_N, overlap_N, own_N, grad.to(logits_NV.dtype), kl_N, greedy_N)


def joined(found: list[RowTerms], rows: int, device: torch.device) -> RowTerms:
    """What all chunks say, end to end."""
    if not found:
        return RowTerms(*torch.zeros(3, rows, device=device))
    first = found[0]
    names = [name for name in RowTerms._fields if getattr(first, name) is not None]
    whole = {name: torch.cat([getattr(terms, name) for terms in found]) for name in names}
    return first._replace(**whole)


def total_loss(found: RowTerms, shares: SlotShares, weights: LossWeights, block: int) -> Tensor:
    """The loss without its confidence term."""
    overlap_N = found.overlap_N
    weight_N = slot_weights(shares, found.own_N, weights.terms.dpace, block)
    tv_N = 2.0 - 2.0 * overlap_N
    loss = (weight_N * ((weights.ce + weights.soft) * found.ce_N + weights.tv * tv_N)).sum()
    for weight, term_N in ((weights.kl, found.kl_N), (weights.greedy, found.greedy_N)):
        if term_N is not None:
            loss = loss + weight * (weight_N * term_N).sum()
    if weights.log_overlap:
        loss = loss + weights.log_overlap * (weight_N * log_overlap(overlap_N)).sum()
    if weights.length:
        loss = loss - weights.length * mean_length(overlap_N, shares, block)
    return loss


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
