"""How far predicted probabilities can be trusted (DSpark §3.2.1, "Calibration").

Suffixes: N predictions, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Bins = NDArray[np.int64]

BINS = 20
_DRAWS = 300


def equal_width_bins(predicted_N: Floats) -> Bins:
    """Bin 0 … 19 of each prediction in [0, 1]; each bin is 1/20 wide, 1 falls into the last."""
    return np.minimum((predicted_N * BINS).astype(np.int64), BINS - 1)


def equal_mass_bins(predicted_N: Floats) -> Bins:
    """Bin 0 … 19 of each prediction, with about equally many in each.

    Equal predictions share a bin, so the result does not depend on the order of the rounds.
    """
    if not len(predicted_N):
        return np.zeros(0, dtype=np.int64)
    first = np.arange(1, BINS) * len(predicted_N) // BINS
    edges = np.sort(predicted_N)[first]
    return np.searchsorted(edges, predicted_N, side="right").astype(np.int64)


def ece(predicted_N: Floats, observed_N: Bools, bins_N: Bins | None = None) -> float:
    """Expected calibration error: mean over rounds of |predicted - observed share| of their bin.

    Args:
        predicted_N: probabilities.
        observed_N: whether each event came about.
        bins_N: bin of each prediction; equal width unless given.

    Returns:
        0 to 1; NaN without predictions.
    """
    if not len(predicted_N):
        return float("nan")
    bins_N = equal_width_bins(predicted_N) if bins_N is None else bins_N
    # The bin's size cancels: n_b / N times the gap of means is the gap of sums over N.
    gaps_B = np.bincount(bins_N, weights=predicted_N - observed_N, minlength=BINS)
    return float(np.abs(gaps_B).sum() / len(predicted_N))


def noise_floor(predicted_N: Floats, seed: int = 0) -> float:
    """The mean ECE that a perfect predictor with these predictions would show.

    Outcomes are drawn from the predictions themselves, independently, a few hundred times. What is
    left is the noise of so many rounds in equal-width bins; NaN without predictions.
    """
    if not len(predicted_N):
        return float("nan")
    bins_N = equal_width_bins(predicted_N)
    numbers = np.random.default_rng(seed)
    noise_floors = [
        ece(predicted_N, numbers.random(len(predicted_N)) < predicted_N, bins_N)
        for _ in range(_DRAWS)
    ]
    return float(np.mean(noise_floors))


def auroc(predicted_N: Floats, observed_N: Bools) -> float:
    """Probability that a random event that came about was given more than one that did not.

    Ties count half. NaN when all outcomes are the same.
    """
    yes, no = int(observed_N.sum()), int((~observed_N).sum())
    if not yes or not no:
        return float("nan")
    _, place_N, count = np.unique(predicted_N, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # ranks from 1; equal predictions share the mean
    return float((rank[place_N][observed_N].sum() - yes * (yes + 1) / 2) / (yes * no))


def mean_known(values: Sequence[float]) -> float:
    """Mean of the values that are numbers; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else float("nan")


def brier(predicted_N: Floats, observed_N: Bools) -> float:
    """Mean squared difference of prediction and outcome; NaN without predictions."""
    if not len(predicted_N):
        return float("nan")
    return float(np.mean((predicted_N - observed_N) ** 2))


def curve(predicted_N: Floats, observed_N: Bools) -> dict[str, list[float] | list[int]]:
    """Points of a reliability diagram over equal-width bins; empty bins are left out.

    Returns:
        by bin: mean `predicted`, share `observed`, and `count`.
    """
    bins_N = equal_width_bins(predicted_N)
    count_B = np.bincount(bins_N, minlength=BINS)
    some = count_B > 0
    sums = [np.bincount(bins_N, weights=x, minlength=BINS) for x in (predicted_N, observed_N)]
    predicted_B, observed_B = (sum_B[some] / count_B[some] for sum_B in sums)
    return {
        "predicted": predicted_B.tolist(),
        "observed": observed_B.tolist(),
        "count": count_B[some].tolist(),
    }
