"""ECE, AUROC, Brier and the noise floor against values worked out by hand or by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dspark.maths.reliability import (
    BINS,
    auroc,
    brier,
    curve,
    ece,
    equal_mass_bins,
    equal_width_bins,
    noise_floor,
)


def made_up(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions with many ties, and outcomes that follow them loosely."""
    numbers = np.random.default_rng(seed)
    predicted = np.round(numbers.random(count), 2)
    return predicted, numbers.random(count) < predicted**1.5


def test_ece_by_hand() -> None:
    predicted = np.array([0.12, 0.14, 0.91, 1.0])
    observed = np.array([False, True, True, True])
    # Bin [0.10, 0.15): mean 0.13 against 1/2. Bin [0.90, 0.95): 0.91 against 1. Last bin: exact.
    assert ece(predicted, observed) == pytest.approx(0.5 * 0.37 + 0.25 * 0.09)


def test_bins_have_equal_width() -> None:
    assert equal_width_bins(np.array([0.0, 0.049, 0.05, 0.5, 0.999, 1.0])).tolist() == [
        *(0, 0, 1, 10),
        *(19, 19),
    ]


@pytest.mark.parametrize("bins_of", [equal_width_bins, equal_mass_bins])
def test_ece_is_the_mean_gap_of_the_bins(bins_of: object) -> None:
    predicted, observed = made_up(700)
    bins = bins_of(predicted)  # type: ignore[operator]
    expected = 0.0
    for b in range(BINS):
        inside = bins == b
        if inside.any():
            gap = abs(predicted[inside].mean() - observed[inside].mean())
            expected += inside.mean() * gap
    assert ece(predicted, observed, bins) == pytest.approx(expected)


def test_equal_mass_bins() -> None:
    predicted = np.random.default_rng(0).beta(8, 1, 1000)
    assert np.bincount(equal_mass_bins(predicted)).tolist() == [50] * BINS
    tied, _ = made_up(1000)
    bins = equal_mass_bins(tied)
    assert all(len(set(bins[tied == value])) == 1 for value in set(tied))  # order cannot matter
    assert set(equal_mass_bins(np.full(40, 0.5))) == {BINS - 1}


def test_auroc_by_hand_and_by_counting_pairs() -> None:
    labels = np.array([False, True, False, True])
    assert auroc(np.array([0.1, 0.4, 0.35, 0.8]), labels) == 1.0
    assert auroc(np.array([0.5, 0.5, 0.5, 0.5]), labels) == 0.5
    assert auroc(np.array([0.9, 0.4, 0.8, 0.8]), labels) == pytest.approx(0.5 / 4)
    predicted, observed = made_up(300)
    yes, no = predicted[observed][:, None], predicted[~observed][None, :]
    assert auroc(predicted, observed) == pytest.approx(((yes > no) + 0.5 * (yes == no)).mean())


def test_brier_by_hand() -> None:
    assert brier(np.array([0.5, 1.0]), np.array([True, False])) == pytest.approx((0.25 + 1) / 2)


def test_curve_leaves_empty_bins_out() -> None:
    points = curve(np.array([0.11, 0.13, 0.97]), np.array([True, False, True]))
    assert points["predicted"] == pytest.approx([0.12, 0.97])
    assert points["observed"] == [0.5, 1.0]
    assert points["count"] == [2, 1]


def test_noise_floor_falls_with_rounds() -> None:
    predicted = np.random.default_rng(0).beta(2, 1, 20_000)
    many, few = noise_floor(predicted), noise_floor(predicted[:2000])
    assert few == pytest.approx(many * math.sqrt(10), rel=0.1)
    assert 0.02 < few < 0.04
    assert many == noise_floor(predicted)  # the same every time
    # It is what a perfect predictor shows.
    observed = np.random.default_rng(1).random(20_000) < predicted
    assert ece(predicted, observed) == pytest.approx(many, rel=0.5)


def test_sure_and_right_has_no_noise() -> None:
    assert noise_floor(np.array([0.0, 1.0, 1.0])) == 0.0


def test_nothing_is_not_a_number() -> None:
    none, nothing = np.zeros(0), np.zeros(0, dtype=bool)
    for value in (
        ece(none, nothing),
        ece(none, nothing, equal_mass_bins(none)),
        brier(none, nothing),
        noise_floor(none),
        auroc(none, nothing),
        auroc(np.array([0.2, 0.4]), np.array([True, True])),
    ):
        assert math.isnan(value)
    assert curve(none, nothing) == {"predicted": [], "observed": [], "count": []}
