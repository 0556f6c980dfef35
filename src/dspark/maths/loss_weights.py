"""How much each slot of a block counts in the training losses, and how much each term does.

Slots count by position, w_k = exp(-(k-1)/decay) over the step's sum (DSpark §3.3), or by D-PACE:
    w_j = Σ_{m≥j} Π_{i≤m} ((1 - a) p_d(x_i) + a),  a = 0.5,  over the step's anchors,
with x_i the true tokens and no gradient (arXiv 2605.18810): what the log-probability of slot j adds
to the expected length of what is accepted. Suffixes: A anchors, K block slots, N = A·K slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

DPACE_SMOOTHING = 0.5  # a: a slot that is surely wrong does not silence those behind it
_LEAST_OVERLAP = 1e-12


class Terms(NamedTuple):
    """Which terms a loss has beside CE and TV, and whether D-PACE weighs its slots.

    Apart from :class:`Scales`, so that what is compiled for them serves weights that move.
    """

    soft: bool = False
    kl: bool = False
    log_overlap: bool = False
    greedy: bool = False
    length: bool = False
    dpace: bool = False

    @property
    def couples(self) -> bool:
        """Whether what a slot learns depends on the other slots of its block."""
        return self.length or self.dpace


class Scales(NamedTuple):
    """Weights of the terms as numbers, or as scalar tensors; ``soft`` is that of ``kl`` as well."""

    ce: float | Tensor
    tv: float | Tensor
    soft: float | Tensor
    log_overlap: float | Tensor
    greedy: float | Tensor
    length: float | Tensor

    def on(self, device: torch.device) -> Scales:
        """The same as scalar tensors."""
        return Scales(*torch.tensor(list(self), dtype=torch.float32, device=device).unbind())


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the terms (:mod:`dspark.maths.losses`), and how slots count.

    ``soft`` is cross-entropy with the target's distribution in place of the label.

    Attributes:
        decay: slots until the weight by position has fallen to 1/e.
        slots: "decay" weighs by position, "dpace" by D-PACE. The confidence head's term goes by
            position in either case.
        base, free: of the same loss of the parallel logits alone, and of rounds in which a
            sequential head reads its own draws (:mod:`dspark.drafters.block.losses`).
    """

    ce: float
    tv: float
    bce: float
    decay: float
    soft: float = 0.0
    kl: float = 0.0
    log_overlap: float = 0.0
    greedy: float = 0.0
    length: float = 0.0
    slots: Literal["decay", "dpace"] = "decay"
    base: float = 0.0
    free: float = 0.0

    @property
    def terms(self) -> Terms:
        """Which terms there are."""
        own, other = bool(self.soft), bool(self.kl)
        rest = bool(self.log_overlap), bool(self.greedy), bool(self.length)
        return Terms(own, other, *rest, self.slots == "dpace")

    @property
    def scales(self) -> Scales:
        """How strongly each of them pulls."""
        soft = self.soft + self.kl
        return Scales(self.ce, self.tv, soft, self.log_overlap, self.greedy, self.length)


@dataclass(frozen=True, slots=True)
class StepTotals:
    """What the terms of an optimiser step are divided by, all micro-batches and ranks together.

    Attributes:
        weight: Σ of the weights by position over all valid slots.
        anchors: blocks with a valid slot.
    """

    weight: float
    anchors: float

    @classmethod
    def of(cls, valid: Iterable[Tensor], decay: float) -> StepTotals:
        """Those of some batches' ``label_valid_AK``."""
        valid = list(valid)
        return cls(
            sum(float(position_weights(valid_AK, decay).sum()) for valid_AK in valid),
            sum(float(valid_AK.any(1).sum()) for valid_AK in valid),
        )


class SlotShares(NamedTuple):
    """What a slot counts in the step's means, [N].

    Attributes:
        mean_N: weight by position over the step's sum; 0 where the slot is not valid.
        anchor_N: 1 over the step's anchors; 0 where the slot is not valid.
    """

    mean_N: Tensor
    anchor_N: Tensor

    def part(self, rows: slice) -> SlotShares:
        """Those of some rows."""
        return SlotShares(self.mean_N[rows], self.anchor_N[rows])


class Pulls(NamedTuple):
    """Weight of each term's gradient in each slot, [N]; None for terms that have none."""

    ce: Tensor
    tv: Tensor
    soft: Tensor | None
    greedy: Tensor | None


def position_weights(label_valid_AK: Tensor, decay: float) -> Tensor:
    """w_k for valid slots and 0 elsewhere, [A, K] float32."""
    k = torch.arange(label_valid_AK.shape[1], device=label_valid_AK.device)
    return torch.exp(-k / decay) * label_valid_AK.float()


def dpace_weights(own_AK: Tensor, valid_AK: Tensor) -> Tensor:
    """D-PACE's w_j [A, K], not yet over the anchors; 0 where a slot is not valid.

    Args:
        own_AK: p_d of the true tokens, 0 for one that the drafter cannot say.
        valid_AK: 1 or True where a slot counts; those behind the first that does not, do not.
    """
    smoothed_AK = (1 - DPACE_SMOOTHING) * own_AK + DPACE_SMOOTHING
    reach_AK = smoothed_AK.cumprod(1) * valid_AK
    return reach_AK.flip(1).cumsum(1).flip(1)


def accepted_lengths(overlap_AK: Tensor, valid_AK: Tensor) -> Tensor:
    """Draft tokens of each block expected to be accepted, [A]: Σ_k Π_{i≤k} α_i of valid slots."""
    return (overlap_AK * valid_AK).cumprod(1).sum(1)


def length_slopes(overlap_AK: Tensor, valid_AK: Tensor) -> Tensor:
    """d(accepted length)/dα_j = Π_{i<j} α_i · Σ_{k≥j} Π_{j<i≤k} α_i, [A, K], without dividing."""
    alpha_AK = overlap_AK * valid_AK
    before_AK = torch.cat([torch.ones_like(alpha_AK[:, :1]), alpha_AK[:, :-1]], 1).cumprod(1)
    behind = torch.zeros_like(alpha_AK[:, 0])
    sums = []
    for k in reversed(range(alpha_AK.shape[1])):
        own = valid_AK[:, k] * (1 + behind)
        sums.append(own)
        behind = alpha_AK[:, k] * own
    return before_AK * torch.stack(sums[::-1], 1)


def slot_weights(shares: SlotShares, own_N: Tensor, dpace: bool, block: int) -> Tensor:
    """What each slot counts in the terms of a slot, [N].

    Args:
        own_N: p_d of the true tokens; only D-PACE looks at it.
        block: K; rows hold whole blocks where D-PACE weighs.
    """
    if not dpace:
        return shares.mean_N
    valid_AK = (shares.anchor_N > 0).view(-1, block)
    return dpace_weights(own_N.view(-1, block), valid_AK).flatten() * shares.anchor_N


def pulls(
    shares: SlotShares, own_N: Tensor, overlap_N: Tensor, terms: Terms, scales: Scales, block: int
) -> Pulls:
    """How hard each term's gradient pulls at each slot.

    Terms of the overlap α alone pull as TV = 2 - 2α does: -log α by 1/(2α), the accepted length by
    half its slope.
    """
    weight_N = slot_weights(shares, own_N, terms.dpace, block)
    tv_N = scales.tv * weight_N
    if terms.log_overlap:
        tv_N = tv_N + scales.log_overlap * weight_N / (2 * overlap_N.clamp(min=_LEAST_OVERLAP))
    if terms.length:
        valid_AK = (shares.anchor_N > 0).view(-1, block)
        slopes_N = length_slopes(overlap_N.view(-1, block), valid_AK).flatten()
        tv_N = tv_N + scales.length * shares.anchor_N * slopes_N / 2
    return Pulls(
        scales.ce * weight_N,
        tv_N,
        scales.soft * weight_N if terms.soft or terms.kl else None,
        scales.greedy * weight_N if terms.greedy else None,
    )


def log_overlap(overlap_N: Tensor) -> Tensor:
    """-log α, [N]."""
    return -overlap_N.clamp(min=_LEAST_OVERLAP).log()


def mean_length(overlap_N: Tensor, shares: SlotShares, block: int) -> Tensor:
    """Draft tokens that are expected to be accepted, a mean over the step's anchors."""
    share_AK = shares.anchor_N.view(-1, block)
    lengths_A = accepted_lengths(overlap_N.view(-1, block), share_AK > 0)
    return (share_AK.amax(1) * lengths_A).sum()
