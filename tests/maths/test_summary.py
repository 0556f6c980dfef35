"""Intervals, macro averages and gains from rows made by hand."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from dspark.maths.summary import gain, lengths, macro, row_intervals


def row(
    drafter: str,
    dataset: str = "a",
    domain: str = "math",
    committed: tuple[int, ...] = (20, 30),
    rounds: tuple[int, ...] = (10, 10),
    *,
    block_size: int = 2,
    policy: str | None = None,
    temperature: float = 0.0,
    accepted: list[list[int]] | None = None,
) -> dict[str, Any]:
    """A row with the fields that a summary reads; half of slot 1 passes, a quarter of slot 2."""
    count = len(rounds)
    per_prompt = {
        "ids": [f"{dataset}-{i}" for i in range(count)],
        "committed": list(committed),
        "rounds": list(rounds),
        "accepted": accepted or [[4, 1]] * count,
        "reached": [[8, 4]] * count,
    }
    return {
        "drafter": drafter,
        "shape": {"block_size": block_size},
        "dataset": dataset,
        "domain": domain,
        "temperature": temperature,
        "policy": policy or f"fixed:{block_size}",
        "per_prompt": per_prompt,
    }


def test_length_is_a_ratio_of_totals() -> None:
    value, resampled_B = lengths(row("x", committed=(9, 2), rounds=(3, 1)))
    assert value == 11 / 4
    # Two prompts: a resample is the first twice, the second twice, or both.
    assert set(resampled_B.tolist()) == {3.0, 2.0, 11 / 4}


def test_intervals_of_a_row() -> None:
    found = row_intervals(row("x", accepted=[[8, 1], [0, 1]]))
    assert found["accepted_length_ci"] == [2.0, 3.0]
    assert found["accept_by_position_ci"] == [[0.0, 1.0], [0.25, 0.25]]


def test_a_figure_nobody_has_gets_no_interval() -> None:
    nothing = row("x", committed=(0, 0), rounds=(0, 0))
    nothing["per_prompt"]["accepted"] = nothing["per_prompt"]["reached"] = [[0, 0], [0, 0]]
    found = row_intervals(nothing)
    assert found == {"accepted_length_ci": None, "accept_by_position_ci": [None, None]}
    (mean,) = macro([nothing])
    assert mean["accepted_length"] is None
    assert mean["slope"] is None


def test_domains_count_alike_however_many_datasets_they_have() -> None:
    rows = [
        row("x", "a", "math", (20,), (10,)),
        row("x", "b", "math", (40,), (10,)),
        row("x", "c", "chat", (15,), (10,)),
    ]
    (found,) = macro(rows)
    assert found["by_domain"] == {"math": 3.0, "chat": 1.5}
    assert found["accepted_length"] == 2.25
    assert found["accepted_length_ci"] == [2.25, 2.25]  # one prompt a dataset: nothing to draw
    assert found["accept_by_position"] == [0.5, 0.25]
    assert found["slope"] == -0.25
    assert found["slope_ci"] == [-0.25, -0.25]


def test_slope_pools_the_rounds_of_all_datasets() -> None:
    rows = [row("x", "a", accepted=[[8, 4]] * 2), row("x", "b", accepted=[[0, 0]] * 2)]
    (found,) = macro(rows)
    assert found["accept_by_position"] == [0.5, 0.5]
    assert found["slope"] == 0.0
    assert found["slope_ci"] is not None


# ---- gains ------------------------------------------------------------------------------------


def noisy_pair(factor: float) -> list[dict[str, Any]]:
    """Prompts that differ a lot; on every one of them drafter x commits `factor` as much as y."""
    committed = tuple(range(20, 420, 20))
    rounds = (20,) * 20
    return [
        row("x", committed=tuple(round(c * factor) for c in committed), rounds=rounds),
        row("y", committed=committed, rounds=rounds),
    ]


@pytest.mark.parametrize("factor", [1.1, 0.9])
def test_a_paired_gain_is_sure_where_the_drafters_alone_are_not(factor: float) -> None:
    x, y = macro(noisy_pair(factor))
    assert x["gains"]["y"]["gain"] == pytest.approx(factor - 1, abs=1e-3)
    low, high = x["gains"]["y"]["ci"]
    assert low <= x["gains"]["y"]["gain"] <= high
    assert (low > 0) == (high > 0) == (factor > 1)
    other_low, other_high = y["gains"]["x"]["ci"]
    assert (other_low > 0) == (other_high > 0) == (factor < 1)
    # The two intervals overlap widely: only pairing tells the drafters apart.
    low_x, high_x = x["accepted_length_ci"]
    low_y, high_y = y["accepted_length_ci"]
    assert max(low_x, low_y) < min(high_x, high_y)


def test_equal_drafters_gain_nothing() -> None:
    assert gain([row("x")], [row("y")]) == {"gain": 0.0, "ci": [0.0, 0.0]}


def test_gains_need_the_same_prompts_temperature_and_policy() -> None:
    mine = row("x")
    others = [
        row("other-prompts", committed=(1, 2, 3), rounds=(1, 1, 1)),
        row("warmer", temperature=1.0),
        row("cut", policy="fixed:1"),
        row("longer", block_size=5),  # its whole block too
    ]
    found = {found["drafter"]: set(found["gains"]) for found in macro([mine, *others])}
    assert found["x"] == {"longer"}
    assert found["longer"] == {"x"}
    assert not found["warmer"] | found["other-prompts"] | found["cut"]


def test_groups_keep_policies_and_temperatures_apart() -> None:
    rows = [row("x"), row("x", policy="threshold:0.5"), row("x", temperature=1.0)]
    keys = [(found["temperature"], found["policy"]) for found in macro(rows)]
    assert keys == [(0.0, "fixed:2"), (0.0, "threshold:0.5"), (1.0, "fixed:2")]


def test_torch_is_not_needed() -> None:
    code = "import sys; import dspark.maths.summary; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
