"""Survival from largest draft probabilities: the regression, its prior, its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dspark.maths.peaks import SLOPE, PeakFit, fit

K = 3


def rounds(count: int, slope: float, intercepts: list[float]) -> tuple[np.ndarray, ...]:
    """Peaks, and outcomes drawn by the model itself; slots behind a rejection tell nothing."""
    draw = np.random.default_rng(0)
    peaks_NK = draw.uniform(0.02, 0.99, (count, K))
    z_NK = slope * (np.log(peaks_NK) - np.log1p(-peaks_NK)) + np.array(intercepts)
    accepted_NK = draw.uniform(size=(count, K)) < 1 / (1 + np.exp(-z_NK))
    told_NK = np.cumprod(np.concatenate([np.ones((count, 1)), accepted_NK[:, :-1]], 1), 1) > 0
    return peaks_NK, accepted_NK, told_NK


def test_without_outcomes_it_is_the_start() -> None:
    nothing = np.zeros((4, K), dtype=bool)
    found = fit(np.full((4, K), np.nan), nothing, nothing)
    assert found == PeakFit.start(K)
    assert found.survival_of([0.5, 0.5]) == pytest.approx([0.5, 0.25])
    assert PeakFit.start(1).survival_of([0.9]) == pytest.approx([1 / (1 + (1 / 9) ** SLOPE)])


def test_it_finds_what_made_the_outcomes() -> None:
    found = fit(*rounds(4000, 0.8, [0.7, -0.2, -1.0]))
    assert found.slope == pytest.approx(0.8, abs=0.05)
    assert found.intercepts == pytest.approx((0.7, -0.2, -1.0), abs=0.2)


def test_few_rounds_move_it_little() -> None:
    few, many = (fit(*rounds(count, 0.6, [2.0, 2.0, 2.0])) for count in (4, 400))
    assert 0 < few.intercepts[0] < many.intercepts[0]


def test_certain_peaks_and_one_sided_outcomes_stay_finite() -> None:
    peaks_NK = np.array([[1.0, 0.0, 1.0]] * 500)
    told_NK = np.ones((500, K), dtype=bool)
    for outcome in (True, False):
        found = fit(peaks_NK, np.full((500, K), outcome), told_NK)
        survival_K = found.survival_of([1.0, 0.0, float("nan")])
        assert all(0 <= a <= 1 for a in survival_K)
        assert math.isfinite(found.slope)
        assert survival_K[0] > 0.9 if outcome else survival_K[0] < 0.1
