"""What a block drafter with heads learns from: its loss, and rounds that run freely.

- The loss itself, along true tokens (DSpark §3.3), over all tokens or over candidates.
- ``base``: the same terms of the parallel logits alone, without the head (Domino, XPress, DSpine).
- ``free``: the same terms once more where the head reads its own draws in place of true tokens, a
  mean over rounds; each round reads what was drawn in the one before (XPress, arXiv 2608.02438).

Suffixes: A anchors, K block slots, N = A·K slots, D hidden, r Markov rank, V draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark.drafters.block.heads import MarkovHead
from dspark.maths.candidates import scored, spread
from dspark.maths.losses import DraftLoss, LossWeights, StepTotals, Teacher, draft_loss
from dspark.maths.sampling import draw
from dspark.maths.teacher import softcapped

FREE_ROUNDS = 3
_TURN = 0.6180339887498949  # uniforms of later rounds: the first ones, turned by the golden ratio
_CHUNK = 256  # slots drawn at once


@dataclass(slots=True)
class BlockOutputs:
    """What the drafter says of packed blocks with known previous tokens (teacher forcing)."""

    hidden_AKD: Tensor
    features_AKr: Tensor | None
    confidence_AK: Tensor | None


@dataclass(frozen=True, slots=True)
class BlockTruth:
    """What blocks are taught.

    Attributes:
        anchor_ids_A: tokens before the first slots (target ids).
        labels_AK: true tokens as draft ids, -1 outside the draft vocabulary.
        valid_AK: slots that count.
        draws_AK: uniforms in [0, 1) of free rounds.
    """

    teacher: Teacher
    anchor_ids_A: Tensor
    labels_AK: Tensor
    valid_AK: Tensor
    draws_AK: Tensor


def block_loss(
    out: BlockOutputs,
    truth: BlockTruth,
    head: MarkovHead | None,
    candidates: int,
    to_target_ids: Callable[[Tensor], Tensor],
    weights: LossWeights,
    totals: StepTotals | None,
) -> DraftLoss:
    """Loss of one batch of blocks.

    Args:
        candidates: C, that the head scores alone; 0 for all tokens.
        to_target_ids: target ids of draft ids.
    """
    totals = totals or StepTotals.of([truth.valid_AK], weights.decay)

    def slots(features: Tensor | None, confidence: Tensor | None, count: int) -> DraftLoss:
        w2 = None if head is None or features is None else head.markov_w2.weight
        taught = truth.teacher, truth.labels_AK, truth.valid_AK
        return draft_loss(
            out.hidden_AKD, features, w2, confidence, *taught, weights, totals, candidates=count
        )

    loss = slots(out.features_AKr, out.confidence_AK, candidates)
    if weights.base and head is not None:
        base = slots(None, None, 0)
        loss = _with(loss, "base", base.total, weights.base)
    if weights.free and head is not None and out.features_AKr is not None:
        rounds = free_rounds(out, truth, head, candidates, to_target_ids)
        free = torch.stack([slots(features, None, candidates).total for features in rounds])
        loss = _with(loss, "free", free.mean(), weights.free)
    return loss


def _with(loss: DraftLoss, name: str, term: Tensor, weight: float) -> DraftLoss:
    """The loss with one more term, told by its name."""
    extra = loss.extra | {name: float(term.detach())}
    return replace(loss, total=loss.total + weight * term, extra=extra)


def free_rounds(
    out: BlockOutputs,
    truth: BlockTruth,
    head: MarkovHead,
    candidates: int,
    to_target_ids: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """The head's features [A, K, r] of each round, where it reads its own draws.

    The first round reads what is drawn along true tokens, each further one what the one before
    draws: after K rounds they would be what inference draws. No gradient goes through a draw.
    """
    assert out.features_AKr is not None
    features, found = out.features_AKr, []
    for number in range(FREE_ROUNDS):
        uniforms_AK = (truth.draws_AK + number * _TURN) % 1
        w2_Vr = head.markov_w2.weight
        drawn_AK = draw_slots(
            out.hidden_AKD, features, w2_Vr, truth.teacher, uniforms_AK, candidates
        )
        ids_AK = torch.cat([truth.anchor_ids_A[:, None], to_target_ids(drawn_AK)[:, :-1]], 1)
        previous_AKr = head.previous(ids_AK).to(out.hidden_AKD.dtype)
        features = head.features(previous_AKr, out.hidden_AKD)
        found.append(features)
    return found


@torch.no_grad()
def draw_slots(
    hidden_AKD: Tensor,
    features_AKr: Tensor,
    w2_Vr: Tensor,
    teacher: Teacher,
    uniforms_AK: Tensor,
    candidates: int,
) -> Tensor:
    """A draft id [A, K] for each slot from p_d at temperature 1, some slots at a time."""
    head_VD, cap = teacher.head_VD, teacher.softcap
    hidden_ND = hidden_AKD.flatten(0, 1).to(head_VD.dtype)
    features_Nr, w2_Vr = features_AKr.flatten(0, 1).to(head_VD.dtype), w2_Vr.to(head_VD.dtype)
    drawn = []
    for hidden, features, u_N in zip(
        hidden_ND.split(_CHUNK),
        features_Nr.split(_CHUNK),
        uniforms_AK.flatten().split(_CHUNK),
        strict=True,
    ):
        if candidates:
            few = scored(hidden, features, head_VD, w2_Vr, cap, candidates)
            logits_NV = spread(few.scores_NC, few.ids_NC, len(head_VD))
        else:
            logits_NV = softcapped(F.linear(hidden, head_VD), cap)[0].float()
            logits_NV = logits_NV + F.linear(features, w2_Vr)
        drawn.append(draw(torch.softmax(logits_NV, -1), u_N))
    return torch.cat(drawn).view(uniforms_AK.shape)
