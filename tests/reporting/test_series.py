"""Lines, curves and pooled figures against the counts they come from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dspark.reporting import series
from dspark.reporting.load import load
from dspark.reporting.records import EvalRow
from dspark.reporting.series import Line
from result_files import eval_row, write_eval


def read(tmp_path: Path, rows: list[dict[str, Any]], study: str | None = None) -> list[Line]:
    write_eval(tmp_path / "eval.json", rows, study)
    return series.lines(load([tmp_path]))


def test_lines_in_the_order_of_kinds(tmp_path: Path) -> None:
    rows = [
        eval_row("a", "dspark"),
        eval_row("b", "mtp"),
        eval_row("a", "dspark", "mbpp"),
        eval_row("c", "dflash"),
        eval_row("a", "dspark", temperature=0.0),
    ]
    lines = read(tmp_path, rows)
    assert [(x.drafter, x.temperature, len(x.rows)) for x in lines] == [
        ("b", 1.0, 1),
        ("c", 1.0, 1),
        ("a", 1.0, 2),
        ("a", 0.0, 1),
    ]
    assert lines[2].macro is not None
    assert lines[2].accepted_length == lines[2].macro.accepted_length
    assert set(lines[2].by_domain) == {"math", "code"}


def test_without_a_macro_record_means_of_means() -> None:
    fields = [
        eval_row("a", dataset=d) | {"accepted_length": value}
        for d, value in (("gsm8k", 2.0), ("math500", 4.0), ("alpaca", 1.0), ("mt-bench", None))
    ]
    rows = [EvalRow.model_validate(row) for row in fields]
    line = Line("f", None, "a", "fixed:7", 1.0, rows, None)
    assert line.by_domain == {"math": 3.0, "chat": 1.0}
    assert line.accepted_length == 2.0
    assert all(map(math.isnan, line.interval))
    assert line.gains == {}


@pytest.mark.parametrize(
    ("policy", "value"),
    [("threshold:0.5", 0.5), ("threshold:.9", 0.9), ("fixed:7", None), ("threshold:x", None)],
)
def test_thresholds(policy: str, value: float | None) -> None:
    line = Line("f", None, "a", policy, 1.0, [], None)
    assert line.threshold == value


def test_a_study_and_the_main_comparison_keep_apart(tmp_path: Path) -> None:
    write_eval(tmp_path / "a.json", [eval_row("a"), eval_row("a", policy="threshold:0.5")])
    write_eval(tmp_path / "b.json", [eval_row("b")], "depth")
    lines = series.lines(load([tmp_path]))
    assert [line.drafter for line in series.of_study(lines, None)] == ["a"]
    assert [line.drafter for line in series.of_study(lines, "depth")] == ["b"]


def test_temperature_of_a_figure(tmp_path: Path) -> None:
    rows = [eval_row("a", temperature=t) for t in (0.0, 0.7, 1.0, 2.0)]
    lines = read(tmp_path, rows)
    assert [x.temperature for x in series.at_temperature(lines, None)] == [1.0]
    assert [x.temperature for x in series.at_temperature(lines, 0.0)] == [0.0]
    assert series.at_temperature(lines, 0.5) == []
    cold = [line for line in lines if line.temperature < 1]
    assert [x.temperature for x in series.at_temperature(cold, None)] == [0.7]
    assert series.at_temperature([], None) == []


def test_labels_say_no_more_than_they_must(tmp_path: Path) -> None:
    a, b = (Line("f", None, name, "fixed:7", 1.0, [], None) for name in "ab")
    other = Line("f", None, "a", "fixed:3", 1.0, [], None)
    elsewhere = Line("g", None, "a", "fixed:7", 1.0, [], None)
    assert series.labels([a, b]) == ["a", "b"]
    assert series.labels([a, other]) == ["a, fixed:7", "a, fixed:3"]
    assert series.labels([a, elsewhere]) == ["a, fixed:7, f", "a, fixed:7, g"]


def test_acceptance_by_position_counts_all_rows_rounds_together() -> None:
    rows = [EvalRow.model_validate(eval_row("a", dataset=d)) for d in ("gsm8k", "math500")]
    points = series.acceptance_by_position(rows)
    for k, (slot, share, (low, high)) in enumerate(points):
        accepted = sum(slots[k] for row in rows for slots in row.per_prompt.accepted)
        reached = sum(slots[k] for row in rows for slots in row.per_prompt.reached)
        assert slot == k + 1
        assert share == pytest.approx(accepted / reached)
        assert low < share < high
    assert series.acceptance_by_position([]) == []


def test_slots_that_few_rounds_reached_are_left_out() -> None:
    row = eval_row("a", prompts=2)
    enough = series.MIN_ROUNDS
    counts = {
        "rounds": [enough, enough],
        "committed": [2 * enough, 2 * enough],
        "reached": [[enough, enough // 2, 1], [enough, enough - enough // 2, 0]],
        "accepted": [[enough // 2, 1, 1], [enough // 2, 0, 0]],
    }
    found = series.acceptance_by_position([EvalRow.model_validate(row | {"per_prompt": counts})])
    assert [(k, share) for k, share, _ in found] == [(1, 0.5), (2, 1 / enough)]


def test_accepted_share_of_the_verified() -> None:
    fields = [
        eval_row("a") | {"verified_tokens": v, "wasted_tokens": w} for v, w in ((10, 4), (30, 6))
    ]
    rows = [EvalRow.model_validate(row) for row in fields]
    assert series.acceptance_rate(rows) == pytest.approx(0.75)
    assert math.isnan(series.acceptance_rate([]))


def test_curves_by_kind_and_head(tmp_path: Path) -> None:
    rows = [
        eval_row("d5", num_layers=5),
        eval_row("d1", num_layers=1),
        eval_row("r1", num_layers=1, markov_head_type="rnn"),
        eval_row("f1", "dflash", num_layers=1),
    ]
    lines = read(tmp_path, rows, "depth")
    curves = series.by_x(lines, lambda line: line.shape.num_layers)
    assert {name: [p[0] for p in points] for name, points in curves.items()} == {
        ("dflash", "dflash"): [1],
        ("dspark", "dspark, vanilla head"): [1, 5],
        ("dspark", "dspark, rnn head"): [1],
    }
    assert series.by_x(lines, lambda line: None) == {}
