"""Sequential Temperature Scaling on rounds whose right temperatures are known."""

from __future__ import annotations

import numpy as np
import pytest

from dspark.maths.reliability import ece
from dspark.maths.temperature_scaling import sequential_temperature_scaling, sigmoid

K = 4


def rounds(
    temperatures: list[float], count: int = 20_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that are the true ones times T*, prefix outcomes, and a mask that takes all."""
    numbers = np.random.default_rng(seed)
    true = numbers.normal(1.0, 1.5, (count, K))
    tokens = numbers.random((count, K)) < sigmoid(true)
    accepted = np.cumprod(tokens, axis=1).astype(bool)
    return true * np.array(temperatures), accepted, np.ones((count, K), dtype=bool)


def test_known_temperatures_are_found() -> None:
    right = [1.6, 0.6, 2.2, 1.0]
    logits, accepted, valid = rounds(right)
    found = sequential_temperature_scaling(logits, accepted, valid)
    assert np.log(found / right) == pytest.approx(np.zeros(K), abs=0.12)
    before = np.cumprod(sigmoid(logits), axis=1)
    after = np.cumprod(sigmoid(logits / found), axis=1)
    fresh_logits, fresh, _ = rounds(right, seed=1)  # rounds that nothing was fitted on
    held_out = np.cumprod(sigmoid(fresh_logits / found), axis=1)
    for k in range(K - 1):
        assert ece(before[:, k], accepted[:, k]) > 0.02
        assert ece(after[:, k], accepted[:, k]) < 0.01
        assert ece(held_out[:, k], fresh[:, k]) < 0.015


def test_calibrated_confidences_stay_as_they_are() -> None:
    found = sequential_temperature_scaling(*rounds([1.0] * K))
    assert np.log(found) == pytest.approx(np.zeros(K), abs=0.12)


def test_later_slots_make_up_for_earlier_ones() -> None:
    """Slot 2 is fitted on the product with slot 1, not by itself."""
    numbers = np.random.default_rng(0)
    logits = np.full((20_000, 2), 1.0)
    accepted = np.zeros((20_000, 2), dtype=bool)
    accepted[:, 0] = numbers.random(20_000) < 0.8
    accepted[:, 1] = accepted[:, 0] & (numbers.random(20_000) < 0.6)
    first, second = sequential_temperature_scaling(logits, accepted, np.ones_like(accepted))
    assert sigmoid(np.array(1 / first)) == pytest.approx(0.8, abs=0.01)
    assert sigmoid(np.array(1 / second)) == pytest.approx(0.6, abs=0.015)


def test_rounds_with_an_unknown_outcome_play_no_part() -> None:
    logits, accepted, valid = rounds([1.5, 0.7, 1.0, 1.0], 2000)
    valid[1000:, 1:] = False
    expected = sequential_temperature_scaling(logits, accepted, valid)
    accepted[1000:, 1:] = ~accepted[1000:, 1:]
    assert np.array_equal(sequential_temperature_scaling(logits, accepted, valid), expected)
    valid[:] = False
    assert sequential_temperature_scaling(logits, accepted, valid).tolist() == [1.0] * K


def test_of_equally_good_temperatures_the_one_nearest_to_1() -> None:
    logits, accepted = np.zeros((50, 1)), np.zeros((50, 1), dtype=bool)
    assert sequential_temperature_scaling(logits, accepted, ~accepted).tolist() == [1.0]


def test_temperatures_stay_within_bounds() -> None:
    logits = np.array([[2.0]] * 50)
    for outcome, bound in ((True, 0.2), (False, 5.0)):
        accepted = np.full((50, 1), outcome)
        [found] = sequential_temperature_scaling(logits, accepted, np.ones_like(accepted))
        assert found == pytest.approx(bound)
