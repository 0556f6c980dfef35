"""Loss terms over the whole draft vocabulary, gradients included, a chunk of slots at a time.

Suffixes: N slots in one row dimension, D hidden, r Markov rank, V draft vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark.maths.loss_rows import (
    RowTerms,
    fused_row_terms,
    joined,
    row_terms_in_place,
    total_loss,
)
from dspark.maths.loss_weights import LossWeights, SlotShares
from dspark.maths.teacher import Teacher, softcapped


class FusedTerms(torch.autograd.Function):
    """All terms of all slots with their gradients, computed chunk by chunk in the forward.

    The gradients need only what a chunk already holds (:mod:`dspark.maths.loss_rows`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        features_Nr: Tensor | None,
        w2_Vr: Tensor | None,
        teacher: Teacher,
        labels_N: Tensor,
        shares: SlotShares,
        weights: LossWeights,
        block: int,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        wants_grad = any(ctx.needs_input_grad[:3])
        head = teacher.head_VD
        dtype = head.dtype
        inputs, table = hidden_ND.to(dtype), head
        if w2_Vr is not None and features_Nr is not None:
            inputs = torch.cat([inputs, features_Nr.to(dtype)], -1)
            table = torch.cat([head, w2_Vr.to(dtype)], -1)
        rows, size = hidden_ND.shape
        found: list[RowTerms] = []
        grad_inputs = torch.empty_like(inputs) if wants_grad else None
        grad_w2 = None if w2_Vr is None else torch.zeros_like(w2_Vr, dtype=torch.float32)
        for start in range(0, rows, chunk):
            part = slice(start, min(start + chunk, rows))
            logits, scale = _draft_logits(inputs[part], table, size, teacher.softcap)
            row_terms = _chunk_terms(
                logits, teacher, part, labels_N[part], shares.part(part), weights, block, wants_grad
            )
            grad = row_terms.grad_NV
            found.append(row_terms._replace(grad_NV=None))
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
        all_terms = joined(found, rows, head.device)
        loss = total_loss(all_terms, shares, weights, block)
        values = all_terms.ce_N, all_terms.overlap_N, all_terms.kl_N, all_terms.greedy_N
        ctx.mark_non_differentiable(*(value for value in values if value is not None))
        return loss, *values

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:
        grad_inputs, grad_w2 = ctx.saved_tensors
        size, hidden_dtype, feature_dtype = ctx.sizes
        grads = grad_inputs * grad_loss.to(grad_inputs.dtype)
        features = None if feature_dtype is None else grads[:, size:].to(feature_dtype)
        w2 = None if grad_w2 is None else grad_w2 * grad_loss
        return grads[:, :size].to(hidden_dtype), features, w2, *([None] * 6)


def _chunk_terms(
    logits: Tensor,
    teacher: Teacher,
    part: slice,
    labels: Tensor,
    shares: SlotShares,
    weights: LossWeights,
    block: int,
    wants_grad: bool,
) -> RowTerms:
    """Terms of one chunk, in the form that suits the device."""
    rows = (teacher.logits(part), teacher.log_norm_N[part], labels, shares)
    if logits.device.type == "cuda":
        scales = weights.scales.on(logits.device)
        return fused_row_terms()(logits, *rows, weights.terms, scales, block, wants_grad)
    return row_terms_in_place(logits, *rows, weights.terms, weights.scales, block, wants_grad)


def _draft_logits(
    inputs: Tensor, table: Tensor, size: int, cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """U + B of one chunk, and dU/d(product with the head). A cap bends U alone, as at inference."""
    if cap is None:
        return F.linear(inputs, table), None
    logits, scale = softcapped(F.linear(inputs[:, :size], table[:, :size]), cap)
    return logits + F.linear(inputs[:, size:], table[:, size:]), scale
