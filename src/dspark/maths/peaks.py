"""Survival of drafts from a drafter without a confidence head: a logistic on the slot's peak.

c_k = σ(s · logit(m_k) + b_k) with m_k = max_x q_k(x), one slope for all slots and an intercept a
slot. m_k depends on x_<k alone, so cutting a draft by c_k is as lossless as by a confidence head;
the probability of the drawn token would not be. No torch.

Suffixes: N rounds, K block slots, P parameters (the slope, then the intercepts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspark.maths.reliability import Bools, Floats
from dspark.maths.temperature_scaling import sigmoid

SLOPE = 0.6  # before anything is known; 0.44 to 0.83 were seen
# Weight of that beside the outcomes, as a precision: slopes lie within about 0.2 of each other,
# intercepts within about 1.5.
SLOPE_WEIGHT, INTERCEPT_WEIGHT = 25.0, 0.5
NEWTON_STEPS = 8
_CLIP = 1e-6  # top-k and top-p may leave one token, with all the probability
_BEYOND = 30.0  # logits that leave no doubt; more would overflow


@dataclass(frozen=True, slots=True)
class PeakFit:
    """The parameters: slope s and intercepts b_1 … b_K."""

    slope: float
    intercepts: tuple[float, ...]

    @classmethod
    def start(cls, block_size: int) -> PeakFit:
        """Before the first outcome."""
        return cls(SLOPE, (0.0,) * block_size)

    def survival_of(self, peaks_K: Sequence[float]) -> list[float]:
        """a_k = Π_{i≤k} c_i, in plain numbers; K may be less than the block."""
        survival, survival_K = 1.0, []
        for peak, intercept in zip(peaks_K, self.intercepts, strict=False):
            z = self.slope * _logit(peak) + intercept
            survival /= 1 + math.exp(min(-z, _BEYOND))
            survival_K.append(survival)
        return survival_K


def fit(peaks_NK: Floats, accepted_NK: Bools, told_NK: Bools) -> PeakFit:
    """Penalised logistic regression toward the start, by Newton's method.

    Args:
        peaks_NK: m of each slot; of slots that are not told anything.
        accepted_NK: the slot's token was accepted.
        told_NK: the slot was verified behind accepted ones, so that it tells of c_k.
    """
    size = peaks_NK.shape[1]
    row_N, slot_N = np.nonzero(told_NK)
    clipped_N = np.nan_to_num(peaks_NK[row_N, slot_N]).clip(_CLIP, 1 - _CLIP)
    x_NP = np.zeros((len(row_N), 1 + size))
    x_NP[:, 0] = np.log(clipped_N) - np.log1p(-clipped_N)
    x_NP[np.arange(len(row_N)), 1 + slot_N] = 1.0
    y_N = accepted_NK[row_N, slot_N].astype(np.float64)
    start_P = np.array([SLOPE, *[0.0] * size])
    weight_P = np.array([SLOPE_WEIGHT, *[INTERCEPT_WEIGHT] * size])
    found_P = _newton(x_NP, y_N, start_P, weight_P)
    return PeakFit(float(found_P[0]), tuple(found_P[1:].tolist()))


def _newton(x_NP: Floats, y_N: Floats, start_P: Floats, weight_P: Floats) -> Floats:
    """The smallest loss, each step halved until the loss does not rise."""

    def loss(at_P: Floats) -> float:
        z_N = x_NP @ at_P
        off_P = at_P - start_P
        misses = np.logaddexp(0.0, z_N) - y_N * z_N
        return float(misses.sum() + 0.5 * (weight_P * off_P * off_P).sum())

    found_P, now = start_P, loss(start_P)
    for _ in range(NEWTON_STEPS):
        c_N = sigmoid((x_NP @ found_P).clip(-_BEYOND, _BEYOND))
        slope_P = x_NP.T @ (c_N - y_N) + weight_P * (found_P - start_P)
        curve_PP = (x_NP.T * (c_N * (1 - c_N))) @ x_NP + np.diag(weight_P)
        step_P, share = np.linalg.solve(curve_PP, slope_P), 1.0
        while share > 1e-3 and loss(found_P - share * step_P) > now:
            share /= 2
        tried_P = found_P - share * step_P
        then = loss(tried_P)
        if then >= now - 1e-9:
            break
        found_P, now = tried_P, then
    return found_P


def _logit(peak: float) -> float:
    clipped = min(max(_CLIP, peak), 1 - _CLIP)  # no number counts as no confidence
    return math.log(clipped) - math.log1p(-clipped)
