"""Training losses of block drafters (DSpark §3.3): no V-sized tensor outlives a chunk of rows.

L = ce · CE + tv · TV + bce · BCE, where for slot k with draft distribution p_d (transition bias
included) and target distribution p_t
    CE  = -log p_d(label),  TV = ‖p_d - p_t‖₁,  BCE = of the confidence c_k against
    c*_k = Σ_v min(p_d, p_t), a constant for the gradient.
Eagle3 learns the whole distribution instead: L = soft · -Σ_v p_t log p_d (arXiv 2503.01840).
Each term is a weighted mean over all valid slots of an optimiser step, w_k = exp(-(k-1)/decay).

Suffixes: A anchors, K block slots, N slots in one row dimension, D hidden, r Markov rank,
V draft vocabulary (the target's own where none is set).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark.maths.loss_rows import fused_row_terms


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the terms, and the decay of the position weight in slots.

    ``soft`` is cross-entropy with the target's distribution in place of the label.
    """

    ce: float
    tv: float
    bce: float
    decay: float
    soft: float = 0.0


@dataclass(frozen=True, slots=True)
class Teacher:
    """What the target says at each slot, without its V-sized logits.

    Attributes:
        last_ND: final-normed last state at position anchor + k - 1.
        log_norm_N: logsumexp of the target's full-vocabulary logits there, float32, so that
            probabilities over a reduced vocabulary are never renormalised.
        head_VD: rows of the target's head for the draft vocabulary.
        softcap: the target's logit softcap, or None.
    """

    last_ND: Tensor
    log_norm_N: Tensor
    head_VD: Tensor
    softcap: float | None = None


def position_weights(label_valid_AK: Tensor, decay: float) -> Tensor:
    """w_k for valid slots and 0 elsewhere, [A, K] float32."""
    k = torch.arange(label_valid_AK.shape[1], device=label_valid_AK.device)
    return torch.exp(-k / decay) * label_valid_AK.float()


class _FusedDraftLoss(torch.autograd.Function):
    """CE and TV of all slots with their gradients, computed chunk by chunk in the forward.

    dTV/dz = p_d (s - <s, p_d>) with s = sign(p_d - p_t), dCE/dz = p_d - onehot and
    dSoft/dz = m p_d - p_t with m = Σ_v p_t, the mass inside the draft vocabulary: all need only
    what a chunk already holds.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        features_Nr: Tensor | None,
        w2_Vr: Tensor | None,
        teacher: Teacher,
        labels_N: Tensor,
        weight_N: Tensor,
        weights: LossWeights,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_grad = any(ctx.needs_input_grad[:3])
        head = teacher.head_VD
        dtype = head.dtype
        inputs, table = hidden_ND.to(dtype), head
        if w2_Vr is not None and features_Nr is not None:
            inputs = torch.cat([inputs, features_Nr.to(dtype)], -1)
            table = torch.cat([head, w2_Vr.to(dtype)], -1)
        rows, size = hidden_ND.shape
        ce_N, overlap_N = (torch.zeros(rows, device=head.device) for _ in range(2))
        grad_inputs = torch.empty_like(inputs) if wants_grad else None
        grad_w2 = None if w2_Vr is None else torch.zeros_like(w2_Vr, dtype=torch.float32)
        for start in range(0, rows, chunk):
            part = slice(start, min(start + chunk, rows))
            logits, scale = _draft_logits(inputs[part], table, size, teacher.softcap)
            terms = (teacher, part, labels_N[part], weight_N[part], weights, wants_grad)
            kind = _fused_terms if logits.device.type == "cuda" else _terms
            ce_N[part], overlap_N[part], grad = kind(logits, *terms)
            if grad_inputs is None or grad is None:
                continue
            if grad_w2 is not None:
                grad_w2 += grad.T.to(dtype) @ inputs[part, size:]
            if scale is None:
                torch.mm(grad.to(dtype), table, out=grad_inputs[part])
            else:
                grad_inputs[part, size:] = grad.to(dtype) @ table[:, size:]
                grad_inputs[part, :size] = grad.mul_(scale).to(dtype) @ head
        ctx.save_for_backward(grad_inputs, grad_w2)
        ctx.sizes = size, hidden_ND.dtype, None if features_Nr is None else features_Nr.dtype
        tv_N = 2.0 - 2.0 * overlap_N
        loss = (weight_N * ((weights.ce + weights.soft) * ce_N + weights.tv * tv_N)).sum()
        ctx.mark_non_differentiable(ce_N, overlap_N)
        return loss, ce_N, overlap_N

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:
        grad_inputs, grad_w2 = ctx.saved_tensors
        size, hidden_dtype, feature_dtype = ctx.sizes
        grads = grad_inputs * grad_loss.to(grad_inputs.dtype)
        features = None if feature_dtype is None else grads[:, size:].to(feature_dtype)
        w2 = None if grad_w2 is None else grad_w2 * grad_loss
        return grads[:, :size].to(hidden_dtype), features, w2, *([None] * 5)


def _terms(
    logits: Tensor,
    teacher: Teacher,
    part: slice,
    label: Tensor,
    weight: Tensor,
    weights: LossWeights,
    wants_grad: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What :func:`dspark.maths.loss_rows.row_terms` says, in place as far as it goes."""
    p_d = torch.softmax(logits, -1, dtype=torch.float32)
    p_t = _teacher_logits(teacher, part).sub(teacher.log_norm_N[part, None]).exp_()
    known = label >= 0
    index = label.clamp(min=0)[:, None]
    own = p_d.gather(1, index)[:, 0].clamp(min=1e-30)
    ce = torch.where(known, -own.log(), 0.0)
    overlap = torch.minimum(p_d, p_t).sum(-1)
    if weights.soft:
        ce = -(p_t * p_d.clamp(min=1e-30).log()).sum(-1)
    if not wants_grad:
        return ce, overlap, None
    weight = weight[:, None]
    soft = (weights.soft * weight) * p_t if weights.soft else None
    sign = torch.sub(p_d, p_t, out=p_t).sign_()
    inner = (sign * p_d).sum(-1, keepdim=True)
    ce_row = (weights.ce * weight) * known[:, None]
    grad = sign.sub_(inner).mul_(weights.tv * weight).add_(ce_row).mul_(p_d)
    grad.scatter_add_(1, index, -ce_row)
    if soft is not None:
        grad.addcmul_(p_d, soft.sum(-1, keepdim=True)).sub_(soft)
    return ce, overlap, grad


def _fused_terms(
    logits: Tensor,
    teacher: Teacher,
    part: slice,
    label: Tensor,
    weight: Tensor,
    weights: LossWeights,
    wants_grad: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same through the compiled function."""
    rows = (_teacher_logits(teacher, part), teacher.log_norm_N[part], label, weight)
    shares = (weights.ce, weights.tv, weights.soft)
    return fused_row_terms()(logits, *rows, *shares, wants_grad)


def _softcapped(logits: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Capped logits and d(capped)/d(logits), which is None without a cap."""
    if cap is None:
        return logits, None
    squashed = torch.tanh(logits.float() / cap)
    return squashed * cap, 1 - squashed.square()


def _draft_logits(
    inputs: Tensor, table: Tensor, size: int, cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """U + B of one chunk, and dU/d(product with the head). A cap bends U alone, as at inference."""
    if cap is None:
        return F.linear(inputs, table), None
    logits, scale = _softcapped(F.linear(inputs[:, :size], table[:, :size]), cap)
    return logits + F.linear(inputs[:, size:], table[:, size:]), scale


def _teacher_logits(teacher: Teacher, part: slice) -> Tensor:
    """The target's logits over the draft vocabulary for one chunk."""
    logits = F.linear(teacher.last_ND[part].to(teacher.head_VD.dtype), teacher.head_VD)
    return _softcapped(logits, teacher.softcap)[0]


@dataclass(slots=True)
class DraftLoss:
    """Loss of one batch and what it measured.

    Attributes:
        total: scalar to call ``backward`` on; already divided by the step's normaliser.
        ce, tv, bce: the unweighted terms (position-weighted means), detached; ``ce`` is the soft
            one where ``weights.soft`` is set.
        overlap_AK: c*_k, probability that slot k is accepted given the ones before it.
    """

    total: Tensor
    ce: float
    tv: float
    bce: float
    overlap_AK: Tensor


def draft_loss(
    hidden_AKD: Tensor,
    features_AKr: Tensor | None,
    w2_Vr: Tensor | None,
    confidence_AK: Tensor | None,
    teacher: Teacher,
    labels_AK: Tensor,
    label_valid_AK: Tensor,
    weights: LossWeights,
    normaliser: float | None = None,
    chunk: int | None = None,
) -> DraftLoss:
    """The paper's loss over blocks of draft slots.

    Args:
        hidden_AKD: states after the drafter's final norm.
        features_AKr, w2_Vr: sequential-head features and W_2; None without such a head.
        confidence_AK: confidence logits, or None.
        teacher: with N = A·K rows in block order.
        labels_AK: true next tokens as draft-vocabulary ids; -1 for a token outside it, which gets
            no CE term but keeps TV and confidence.
        label_valid_AK: slots that count.
        normaliser: Σ of position weights over the whole optimiser step (all micro-batches and
            ranks); by default this batch's own.
        chunk: slots handled at once, which bounds memory at a few chunk x V float32 tensors; by
            default 256 on a CPU, whose cache they should meet, and 2^27 / V elsewhere.
    """
    assert not (weights.ce and weights.soft), "one kind of cross-entropy at a time"
    if chunk is None:
        on_cpu = hidden_AKD.device.type == "cpu"
        chunk = 256 if on_cpu else max(2**27 // len(teacher.head_VD), 256)
    weight_AK = position_weights(label_valid_AK, weights.decay)
    total_weight = float(weight_AK.sum()) if normaliser is None else normaliser
    weight_AK = weight_AK / max(total_weight, 1e-8)
    ce_tv, ce_N, overlap_N = _FusedDraftLoss.apply(
        hidden_AKD.flatten(0, 1),
        None if features_AKr is None else features_AKr.flatten(0, 1),
        w2_Vr,
        teacher,
        labels_AK.flatten(),
        weight_AK.flatten(),
        weights,
        chunk,
    )
    overlap_AK = overlap_N.view_as(weight_AK)
    total, bce = ce_tv, 0.0
    if confidence_AK is not None:
        target = overlap_AK.clamp(0, 1)
        losses = F.binary_cross_entropy_with_logits(confidence_AK.float(), target, reduction="none")
        bce_term = (weight_AK * losses).sum()
        total, bce = total + weights.bce * bce_term, float(bce_term.detach())
    with torch.no_grad():
        ce = float((weight_AK.flatten() * ce_N).sum())
        tv = float((weight_AK * (2 - 2 * overlap_AK)).sum())
    return DraftLoss(total, ce, tv, bce, overlap_AK)
