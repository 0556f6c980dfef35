"""Sequential Temperature Scaling: confidences whose product can be trusted (DSpark §3.2.1).

Suffixes: N rounds, K block slots.
"""

from __future__ import annotations

import numpy as np

from dspark.maths.reliability import Bools, Floats, ece

HIGHEST = 5.0  # temperatures are searched from 1 / HIGHEST to HIGHEST
_STEPS = 40  # on either side of 1 in the first pass, and of its best in the second


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-z)), for logits of moderate size."""
    return 1 / (1 + np.exp(-logits))


def sequential_temperature_scaling(
    logits_NK: Floats, accepted_NK: Bools, valid_NK: Bools
) -> Floats:
    """One temperature a slot, such that Π_{i≤k} σ(z_i / T_i) predicts "prefix k was accepted".

    Slot by slot from the first, T_k minimises the ECE of the product with earlier temperatures
    fixed. Dividing by a positive number keeps the order of rounds within a slot.

    Args:
        logits_NK: logits z of the confidences.
        accepted_NK: draft tokens 1 … k were all accepted.
        valid_NK: that outcome is known; others play no part in T_k.

    Returns:
        float64 [K], each from 0.2 to 5; 1 for a slot without a known outcome.
    """
    temperatures_K = np.ones(logits_NK.shape[1])
    survival_N = np.ones(len(logits_NK))
    for k, logits_N in enumerate(logits_NK.T):
        rows = valid_NK[:, k]
        if rows.any():
            temperatures_K[k] = _best(logits_N[rows], survival_N[rows], accepted_NK[rows, k])
        survival_N = survival_N * sigmoid(logits_N / temperatures_K[k])
    return temperatures_K


def _best(logits_N: Floats, survival_N: Floats, accepted_N: Bools) -> float:
    """Grid search in the logarithm, refined once around the best of the first pass."""

    def search(grid: Floats) -> float:  # the grid and the result are logarithms
        errors = [ece(survival_N * sigmoid(logits_N / t), accepted_N) for t in np.exp(grid)]
        # Of equally good ones, the least change.
        return float(min(zip(errors, np.abs(grid), grid, strict=True))[2])

    steps = np.arange(-_STEPS, _STEPS + 1) / _STEPS  # 0, a temperature of 1, is one of them
    limit = np.log(HIGHEST)
    best = search(steps * limit)
    best = search(np.clip(best + steps * limit / _STEPS, -limit, limit))
    return float(np.exp(best))
