"""Bootstrap intervals: the right draws, the right width, and slopes with gaps."""

from __future__ import annotations

import numpy as np
import pytest

from dspark.maths.bootstrap import RESAMPLES, interval, ratio, resample_counts, slope


def test_every_resample_draws_as_many_prompts_as_there_are() -> None:
    counts_BP = resample_counts(7)
    assert counts_BP.shape == (RESAMPLES, 7)
    assert (counts_BP.sum(1) == 7).all()
    # Each prompt is drawn once on average, with the variance of a binomial.
    assert counts_BP.mean(0) == pytest.approx(np.ones(7), abs=0.1)
    assert counts_BP.var() == pytest.approx(6 / 7, abs=0.05)


def test_draws_follow_from_size_and_key_alone() -> None:
    assert (resample_counts(9, 5) == resample_counts(9, 5)).all()
    assert (resample_counts(9, 5) != resample_counts(9, 6)).any()


def test_the_interval_of_a_mean_covers_it() -> None:
    """Exponential samples of mean 1: nearly 95 of 100 intervals hold it, and 50 of 100 at 50 %."""
    samples_SP = np.random.default_rng(0).exponential(size=(400, 100))
    resampled_SB = samples_SP @ resample_counts(100, 1, 1000).T / 100
    for level, low, high in ((0.95, 0.91, 0.97), (0.5, 0.43, 0.57)):
        found = [interval(values_B, level) for values_B in resampled_SB]
        inside = [ends is not None and ends[0] <= 1 <= ends[1] for ends in found]
        assert low < np.mean(inside) < high


def test_the_interval_has_the_normal_width() -> None:
    sample_P = np.random.default_rng(1).normal(size=400)
    ends = interval(resample_counts(400, 2) @ sample_P / 400)
    assert ends is not None
    assert ends[1] - ends[0] == pytest.approx(2 * 1.96 * sample_P.std() / 20, rel=0.08)
    assert sum(ends) / 2 == pytest.approx(sample_P.mean(), abs=0.01)


def test_unknown_values_are_left_out() -> None:
    assert interval([1.0, float("nan"), 1.0]) == (1.0, 1.0)
    assert interval([float("nan")]) is None
    found = ratio([1, 2, 0], [2, 0, 3])
    assert found[0] == 0.5
    assert np.isnan(found[1])
    assert found[2] == 0


def test_slopes() -> None:
    assert slope([1.0, 3.0, 5.0]) == pytest.approx(2.0)
    assert slope([0.0, 1.0, 1.0]) == pytest.approx(np.polyfit([1, 2, 3], [0, 1, 1], 1)[0])
    # A slot that nothing reached counts neither as zero nor as a step.
    assert slope([1.0, np.nan, 5.0]) == pytest.approx(2.0)
    assert slope([[0.5, 0.4], [0.4, 0.6]]) == pytest.approx([-0.1, 0.2])
    assert np.isnan(slope([0.7, np.nan]))
    assert np.isnan(slope([]))
