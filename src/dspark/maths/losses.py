"""Training losses of block drafters (DSpark §3.3): no V-sized tensor outlives a chunk of rows.

Terms of slot k with draft distribution p_d (transition bias included), target distribution p_t and
overlap α = Σ_v min(p_d, p_t), each a mean over all valid slots of an optimiser step
(:mod:`dspark.maths.loss_weights`):
    ce           -log p_d(label)                                   DSpark §3.3
    tv           ‖p_d - p_t‖₁ = 2 - 2α                             DSpark §3.3
    bce          of the confidence c_k against c*_k = α, a constant for the gradient
    soft         -Σ_v p_t log p_d, in place of ce                  Eagle3, arXiv 2503.01840
    kl           KL(p_t ‖ p_d) over the draft vocabulary
    log_overlap  -log α, TV's gradient over 2α                     arXiv 2602.23881
    greedy       -log p_d(arg-max of p_t), for greedy decoding
and of a whole block, a mean over anchors:
    length       -Σ_k Π_{i≤k} α_i                                  arXiv 2606.12370

Suffixes: A anchors, K block slots, N slots in one row dimension, D hidden, r Markov rank,
V draft vocabulary (the target's own where none is set).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark.maths.candidates import CandidateTerms
from dspark.maths.fused_terms import FusedTerms
from dspark.maths.loss_weights import (
    LossWeights,
    SlotShares,
    StepTotals,
    log_overlap,
    mean_length,
    position_weights,
)
from dspark.maths.teacher import Teacher

__all__ = ["DraftLoss", "LossWeights", "StepTotals", "Teacher", "draft_loss", "position_weights"]


@dataclass(slots=True)
class DraftLoss:
    """Loss of one batch and what it measured.

    Attributes:
        total: scalar to call ``backward`` on; already divided by the step's totals.
        ce, tv, bce: the unweighted terms (means by position), detached; ``ce`` is the soft one
            where ``weights.soft`` is set.
        overlap_AK: c*_k, probability that slot k is accepted given the ones before it.
        extra: further terms that have a weight, by name, likewise; ``length`` as draft tokens.
    """

    total: Tensor
    ce: float
    tv: float
    bce: float
    overlap_AK: Tensor
    extra: dict[str, float] = field(default_factory=dict)


def draft_loss(
    hidden_AKD: Tensor,
    features_AKr: Tensor | None,
    w2_Vr: Tensor | None,
    confidence_AK: Tensor | None,
    teacher: Teacher,
    labels_AK: Tensor,
    label_valid_AK: Tensor,
    weights: LossWeights,
    totals: StepTotals | None = None,
    chunk: int | None = None,
    candidates: int = 0,
) -> DraftLoss:
    """The loss over blocks of draft slots.

    Args:
        hidden_AKD: states after the drafter's final norm.
        features_AKr, w2_Vr: sequential-head features and W_2; None without such a head.
        confidence_AK: confidence logits, or None.
        teacher: with N = A·K rows in block order.
        labels_AK: true next tokens as draft-vocabulary ids; -1 for a token outside it, which gets
            no CE term but keeps TV and confidence.
        label_valid_AK: slots that count.
        totals: of the whole optimiser step (all micro-batches and ranks); by default this
            batch's own.
        chunk: slots handled at once, which bounds memory at a few chunk x V float32 tensors; by
            default 256 on a CPU, whose cache they should meet, and 2^27 / V elsewhere. Cut to
            whole blocks where a term looks at them.
        candidates: C, where the head scores the best parallel logits alone
            (:mod:`dspark.maths.candidates`); 0 for all.
    """
    assert not (weights.ce and weights.soft), "one kind of cross-entropy at a time"
    block = label_valid_AK.shape[1]
    if chunk is None:
        on_cpu = hidden_AKD.device.type == "cpu"
        chunk = 256 if on_cpu else max(2**27 // len(teacher.head_VD), 256)
    if weights.terms.couples:
        chunk = max(chunk // block, 1) * block
    if totals is None:
        totals = StepTotals.of([label_valid_AK], weights.decay)
    weight_AK = position_weights(label_valid_AK, weights.decay) / max(totals.weight, 1e-8)
    share_AK = label_valid_AK.float() / max(totals.anchors, 1)
    shares = SlotShares(weight_AK.flatten(), share_AK.flatten())
    learned = hidden_AKD.flatten(0, 1), None if features_AKr is None else features_AKr.flatten(0, 1)
    given = *learned, w2_Vr, teacher, labels_AK.flatten(), shares, weights, block, chunk
    if candidates:
        found = CandidateTerms.apply(*given, candidates)
    else:
        found = FusedTerms.apply(*given)
    slot_terms, ce_N, overlap_N, kl_N, greedy_N = found
    overlap_AK = overlap_N.view_as(weight_AK)
    total, bce = slot_terms, 0.0
    if confidence_AK is not None:
        target = overlap_AK.clamp(0, 1)
        losses = F.binary_cross_entropy_with_logits(confidence_AK.float(), target, reduction="none")
        bce_term = (weight_AK * losses).sum()
        total, bce = total + weights.bce * bce_term, float(bce_term.detach())
    with torch.no_grad():
        ce = float((weight_AK.flatten() * ce_N).sum())
        tv = float((weight_AK * (2 - 2 * overlap_AK)).sum())
        extra = _extra_means(overlap_N, kl_N, greedy_N, shares, weights, block)
    return DraftLoss(total, ce, tv, bce, overlap_AK, extra)


def _extra_means(
    overlap_N: Tensor,
    kl_N: Tensor | None,
    greedy_N: Tensor | None,
    shares: SlotShares,
    weights: LossWeights,
    block: int,
) -> dict[str, float]:
    """Terms beyond the paper's that have a weight, each as its mean."""
    by_slot = {"kl": kl_N, "greedy": greedy_N}
    if weights.log_overlap:
        by_slot["log_overlap"] = log_overlap(overlap_N)
    means = {
        name: float((shares.mean_N * term_N).sum())
        for name, term_N in by_slot.items()
        if term_N is not None
    }
    if weights.length:
        means["length"] = float(mean_length(overlap_N, shares, block))
    return means
