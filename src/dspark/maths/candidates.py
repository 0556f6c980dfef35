"""Drafts that live on few candidates: a slot's best parallel logits, scored once more by the head.

The parallel logits U alone decide which C tokens of a slot are candidates; the sequential head adds
its bias to those, and p_d is the soft-max over them (DSpine, DFlash2). Which they are does not
depend on what is drawn in the block, so drafting stays exact.

Losses over candidates are those of :mod:`dspark.maths.losses` with the target's mass renormalised
over them; a slot whose candidates hold less than 1e-4 of it is left out. The overlap that is told,
and taught to the confidence head, is that with the target's own distribution.

Suffixes: R requests, N slots in one row dimension, C candidates, D hidden, r Markov rank, V draft
vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark.maths.loss_rows import RowTerms, joined, row_terms_in_place, total_loss
from dspark.maths.loss_weights import LossWeights, SlotShares
from dspark.maths.teacher import Teacher, softcapped

LEAST_MASS = 1e-4


def best(logits_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each row and their ids, [N, C]; C is at most V."""
    found = logits_NV.topk(min(count, logits_NV.shape[-1]), dim=-1)
    return found.values, found.indices


def spread(scores_RC: Tensor, ids_RC: Tensor, width: int) -> Tensor:
    """Candidates' scores as float32 logits [R, V]; -inf rules all others out."""
    logits_RV = scores_RC.new_full((len(scores_RC), width), float("-inf"), dtype=torch.float32)
    return logits_RV.scatter_(1, ids_RC, scores_RC.float())


class CandidateTerms(torch.autograd.Function):
    """Loss terms over candidates with their gradients, computed chunk by chunk in the forward.

    Takes what :class:`dspark.maths.fused_terms.FusedTerms` does, and C; says the same, with the
    overlap of the target's own distribution.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        features_Nr: Tensor,
        w2_Vr: Tensor,
        teacher: Teacher,
        labels_N: Tensor,
        shares: SlotShares,
        weights: LossWeights,
        block: int,
        chunk: int,
        count: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        wants_grad = any(ctx.needs_input_grad[:3])
        head, dtype = teacher.head_VD, teacher.head_VD.dtype
        hidden, features, w2 = hidden_ND.to(dtype), features_Nr.to(dtype), w2_Vr.to(dtype)
        grads = [torch.zeros_like(hidden), torch.zeros_like(features)]
        grad_w2 = torch.zeros_like(w2_Vr, dtype=torch.float32)
        found: list[RowTerms] = []
        overlaps, counted = [], []
        rows = len(hidden)
        for start in range(0, rows, chunk):
            part = slice(start, min(start + chunk, rows))
            own = shares.part(part)
            few = scored(hidden[part], features[part], head, w2, teacher.softcap, count)
            terms, overlap_N, own = _terms(
                few, teacher, part, labels_N[part], own, weights, block, wants_grad
            )
            found.append(terms._replace(grad_NV=None))
            overlaps.append(overlap_N)
            counted.append(own)
            if terms.grad_NV is None:
                continue
            grad_NC, ids_NC = terms.grad_NV.to(dtype), few.ids_NC
            through = grad_NC if few.slope_NC is None else grad_NC * few.slope_NC.to(dtype)
            grads[0][part] = torch.matmul(through[:, None], head[ids_NC])[:, 0]
            grads[1][part] = torch.matmul(grad_NC[:, None], w2[ids_NC])[:, 0]
            pulls = (grad_NC[..., None] * features[part, None]).flatten(0, 1)
            grad_w2.index_add_(0, ids_NC.flatten(), pulls.to(grad_w2.dtype))
        ctx.save_for_backward(*grads, grad_w2)
        ctx.dtypes = hidden_ND.dtype, features_Nr.dtype
        terms = joined(found, rows, head.device)
        kept = SlotShares(*(torch.cat(column) for column in zip(*counted, strict=True)))
        loss = total_loss(terms, kept, weights, block)
        values = terms.ce_N, torch.cat(overlaps), terms.kl_N, terms.greedy_N
        ctx.mark_non_differentiable(*(value for value in values if value is not None))
        return loss, *values

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:
        hidden, features, w2 = ctx.saved_tensors
        grads = [
            (grad * grad_loss.to(grad.dtype)).to(dtype)
            for grad, dtype in zip((hidden, features), ctx.dtypes, strict=True)
        ]
        return *grads, w2 * grad_loss, *([None] * 7)


class Scored(NamedTuple):
    """Candidates of some slots.

    Attributes:
        scores_NC: U + B of each, float32.
        ids_NC: their draft ids.
        slope_NC: dU/d(product with the head) under a softcap, else None.
    """

    scores_NC: Tensor
    ids_NC: Tensor
    slope_NC: Tensor | None


def scored(
    hidden_ND: Tensor,
    features_Nr: Tensor,
    head_VD: Tensor,
    w2_Vr: Tensor,
    cap: float | None,
    count: int,
) -> Scored:
    """The best parallel logits with the head's bias."""
    values_NC, ids_NC = best(F.linear(hidden_ND, head_VD), count)
    capped_NC, slope_NC = softcapped(values_NC, cap)  # a cap keeps the order
    bias_NC = torch.matmul(w2_Vr[ids_NC], features_Nr[..., None])[..., 0]
    return Scored(capped_NC.float() + bias_NC.float(), ids_NC, slope_NC)


def _terms(
    few: Scored,
    teacher: Teacher,
    part: slice,
    labels_N: Tensor,
    shares: SlotShares,
    weights: LossWeights,
    block: int,
    wants_grad: bool,
) -> tuple[RowTerms, Tensor, SlotShares]:
    """Terms of one chunk, overlap with the target's own distribution, and the slots that count."""
    teacher_NC = teacher.logits_of(part, few.ids_NC)
    log_norm_N = teacher.log_norm_N[part]
    p_t_NC = (teacher_NC - log_norm_N[:, None]).exp()
    p_d_NC = torch.softmax(few.scores_NC, -1)
    overlap_N = torch.minimum(p_d_NC, p_t_NC).sum(-1)
    inside_N = teacher_NC.logsumexp(-1)
    counts_N = (inside_N - log_norm_N).exp() >= LEAST_MASS
    shares = SlotShares(*(share_N * counts_N for share_N in shares))
    is_label_NC = few.ids_NC == labels_N[:, None]
    place_N = torch.where(is_label_NC.any(-1), is_label_NC.int().argmax(-1), -1)
    terms = row_terms_in_place(
        few.scores_NC,
        teacher_NC,
        inside_N,
        place_N,
        shares,
        weights.terms,
        weights.scales,
        block,
        wants_grad,
    )
    return terms, overlap_N, shares
