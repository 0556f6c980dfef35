"""The best fixed choice is picked on one half of the turns and met on the other."""

from __future__ import annotations

import random

import pytest

from dspark.maths.never_worse import Turns, against_fixed


def turns(*speeds: float, seconds: float = 2.0) -> Turns:
    """Turns at these tokens a second."""
    return [(speed * seconds, seconds) for speed in speeds]


def test_ratio_and_choice() -> None:
    found = against_fixed(
        {"off": turns(*[50] * 6), "fixed:3": turns(*[100] * 6), "causal": turns(*[97] * 6)}
    )["causal"]
    assert found.ratio == pytest.approx(0.97)
    assert (found.low, found.high) == pytest.approx((0.97, 0.97))
    assert found.chosen == ("fixed:3", "fixed:3")
    assert not found.falls_short("causal")
    assert found.falls_short("pipelined")


def test_a_half_is_compared_with_what_won_the_other() -> None:
    speeds = {
        "off": turns(*[200, 100] * 3),  # best on even turns, so compared on odd ones
        "fixed:2": turns(*[50, 300] * 3),  # best on odd turns, so compared on even ones
        "pipelined": turns(*[60, 80] * 3),
    }
    found = against_fixed(speeds)["pipelined"]
    assert found.chosen == ("off", "fixed:2")
    assert found.ratio == pytest.approx((80 / 100 + 60 / 50) / 2)


def test_no_winner_s_curse() -> None:
    """Seven choices that are all the same as the adaptive policy do not make it look worse."""
    draw = random.Random(1)
    noisy = lambda: turns(*(draw.gauss(100, 10) for _ in range(400)))  # noqa: E731
    found = against_fixed({"causal": noisy(), **{f"fixed:{k}": noisy() for k in range(1, 8)}})[
        "causal"
    ]
    assert found.low < 1 < found.high
    assert abs(found.ratio - 1) < 0.02


def test_drift_that_falls_on_all_alike_cancels() -> None:
    draw = random.Random(2)
    pace = [draw.uniform(0.3, 1.0) for _ in range(40)]
    speeds = {"off": turns(*(100 * p for p in pace)), "causal": turns(*(90 * p for p in pace))}
    found = against_fixed(speeds)["causal"]
    assert (found.low, found.ratio, found.high) == pytest.approx((0.9, 0.9, 0.9))


def test_totals_not_means_of_turns() -> None:
    speeds = {"off": turns(*[100] * 4), "causal": [(10, 1), (10, 1), (990, 3), (990, 3)]}
    assert against_fixed(speeds)["causal"].ratio == pytest.approx(1000 / 4 / 100)


def test_the_same_every_time() -> None:
    draw = random.Random(3)
    speeds = {name: turns(*(draw.gauss(100, 9) for _ in range(20))) for name in ("off", "causal")}
    assert against_fixed(speeds) == against_fixed(speeds)
    assert against_fixed(speeds)["causal"].low < against_fixed(speeds)["causal"].high


@pytest.mark.parametrize(
    "speeds",
    [
        {},
        {"causal": turns(*[9] * 6)},
        {"off": turns(*[9] * 6), "threshold:0.5": turns(*[9] * 6)},
        {"off": turns(9, 9, 9), "causal": turns(*[9] * 6)},
    ],
)
def test_nothing_to_compare(speeds: dict[str, Turns]) -> None:
    assert against_fixed(speeds) == {}


def test_turns_that_not_all_speeds_have_are_left_out() -> None:
    speeds = {"off": turns(*[100] * 4), "causal": turns(*[90] * 4, 5, 5, 5)}
    assert against_fixed(speeds)["causal"].ratio == pytest.approx(0.9)


def test_a_fixed_choice_that_stood_still_is_never_the_best() -> None:
    speeds = {"off": [(0, 1)] * 4, "fixed:1": turns(*[10] * 4), "causal": turns(*[10] * 4)}
    assert against_fixed(speeds)["causal"].chosen == ("fixed:1", "fixed:1")
