"""The cost table: interpolation, envelope, and whom it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.errors import DataError, IncompatibleDrafterError
from dspark.tables.cost import CostKey, CostTable, envelope, rising

KEY = CostKey("a processor", 2, "tiny", "float32", "ab12")
TABLE = CostTable(KEY, rising([(1, 0.01), (4, 0.016), (8, 0.02)]), rising([(1, 0.002)]), 100)


def test_times_between_and_beyond_the_points() -> None:
    seconds = TABLE.verify_s(10)
    assert seconds[[0, 1, 2, 4, 6, 8]].tolist() == pytest.approx(
        [0.01, 0.01, 0.012, 0.016, 0.018, 0.02]
    )
    assert seconds[10] == pytest.approx(0.02 + 2 * 0.01 / 7)
    assert TABLE.draft_s(0) == 0
    assert TABLE.draft_s(1) == TABLE.draft_s(5) == 0.002
    assert replace(TABLE, draft=()).draft_s(3) == 0


SHORT = replace(TABLE, block=5, short=((1, ((1, 0.001),)), (3, rising([(1, 0.003), (9, 0.005)]))))


def test_fewer_slots_cost_less() -> None:
    """Straight between the measured slots; what is dearer than a whole block is noise."""
    assert SHORT.draft_s(1, 1) == 0.001
    assert replace(SHORT, draft=rising([(1, 0.004)])).draft_s(1, 4) == pytest.approx(0.0035)
    assert SHORT.draft_s(9, 2) == pytest.approx(0.003)
    assert SHORT.draft_s(1) == 0.002
    assert SHORT.draft_s(1, 5) == SHORT.draft_s(1, 3) == 0.003
    assert SHORT.draft_s(0, 2) == 0
    assert TABLE.draft_s(1, 1) == TABLE.draft_s(1, 5) == 0.002  # whole blocks are all it knows


MANY = replace(
    TABLE,
    verify=rising([(1, 0.01), (4, 0.016), (8, 0.02), (32, 0.08)]),
    of_requests=((1, rising([(1, 0.01), (8, 0.018)])), (4, rising([(4, 0.03), (16, 0.06)]))),
)


def test_rows_of_many_requests_cost_more() -> None:
    one, four = MANY.verify_s(32, 1), MANY.verify_s(32, 4)
    assert one[[1, 8]].tolist() == pytest.approx([0.01, 0.018])
    assert four[[4, 10, 16]].tolist() == pytest.approx([0.03, 0.045, 0.06])
    assert four[:5].tolist() == [four[4]] * 5  # a row a request at least
    assert one[16] - one[8] == pytest.approx(0.02)  # behind its points as all batches together
    assert MANY.verify_s(32, 3)[8] == pytest.approx((one[8] + 2 * four[8]) / 3)
    assert (MANY.verify_s(32, 400) == four).all()
    assert (MANY.verify_s(2, 4) <= four[4]).all()  # fewer tokens asked for than requests
    for requests in range(1, 6):
        assert (np.diff(MANY.verify_s(100, requests)) >= 0).all()
    assert (MANY.verify_s(32) == MANY.verify_s(32, None)).all()
    assert (TABLE.verify_s(10, 4) == TABLE.verify_s(10)).all()  # a table of before
    assert (TABLE.most_requests, MANY.most_requests) == (1, 4)


def test_more_work_never_takes_less_time() -> None:
    assert rising([(4, 0.01), (1, 0.02)]) == ((1, 0.02), (4, 0.02))
    assert (np.diff(TABLE.verify_s(50)) >= 0).all()


@pytest.mark.parametrize(
    "points", [[], [(1, 0.1), (1, 0.2)], [(0, 0.1)], [(1, 0.0)], [(1, float("nan"))]]
)
def test_points_that_cannot_be(points: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        rising(points)


@given(st.lists(st.floats(0, 3), min_size=1, max_size=30))
def test_envelope_is_the_highest_convex_curve_below(rises: list[float]) -> None:
    seconds = 1 + np.cumsum(rises)
    low = envelope(seconds)
    assert (low <= seconds + 1e-9).all()
    assert (np.diff(low, 2) >= -1e-9).all()
    for i in range(len(seconds)):  # every point lies on a chord between two of the curve's
        chords = [
            seconds[a] + (seconds[b] - seconds[a]) * (i - a) / (b - a)
            for a in range(i)
            for b in range(i + 1, len(seconds))
        ]
        assert low[i] == pytest.approx(min([seconds[i], *chords]))


@pytest.mark.parametrize("table", [TABLE, SHORT, MANY])
def test_round_trip(tmp_path: Path, table: CostTable) -> None:
    path = tmp_path / "cost.json"
    table.save(path, {"command": "test"})
    assert CostTable.load(path, KEY) == table


def test_a_table_of_before_short_blocks_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    TABLE.save(path)
    content = json.loads(path.read_text())
    del content["block"], content["short"], content["of_requests"]
    path.write_text(json.dumps(content))
    assert CostTable.load(path, KEY) == TABLE


@pytest.mark.parametrize(
    ("field", "value"), [("machine", "another"), ("threads", 4), ("dtype", "bfloat16")]
)
def test_another_machine_or_model_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "cost.json"
    TABLE.save(path)
    with pytest.raises(IncompatibleDrafterError, match=f"another {field}.*here {value}"):
        CostTable.load(path, replace(KEY, **{field: value}))
    assert CostTable.load(path) == TABLE


@pytest.mark.parametrize(
    "change",
    [
        {"key": {}},
        {"verify": []},
        {"verify": [[1, -1]]},
        {"verify": [["1", 0.1]]},
        {"verify": [[1, "0.1"]]},
        {"verify": [[1.5, 0.1]]},
        {"verify": [[True, 0.1]]},
        {"verify": [[1, True]]},
        {"verify": [[1, float("nan")]]},
        {"verify": [[1, float("inf")]]},
        {"draft": [[0, 0.1]]},
        {"context": "256"},
        {"context": -1},
        {"context": 2.5},
        {"key": {**asdict(KEY), "threads": 0}},
        {"key": {**asdict(KEY), "threads": "2"}},
        {"key": {**asdict(KEY), "machine": 5}},
        {"short": [[2, [[1, 0.1]]]], "block": 4.5},
        {"short": [["2", [[1, 0.1]]]], "block": 4},
        {"of_requests": [[True, [[1, 0.1]]]]},
        {"short": [[2, []]], "block": 4},
        {"short": [[4, [[1, 0.1]]]], "block": 4},
        {"short": [[2, [[1, 0.1]]], [1, [[1, 0.1]]]], "block": 4},
        {"short": 3},
        {"of_requests": [[2, []]]},
        {"of_requests": [[2, [[1, 0.1]]]]},
        {"of_requests": [[2, [[2, 0.1]]], [1, [[1, 0.1]]]]},
    ],
)
def test_damage_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "cost.json"
    TABLE.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=r"cost.json is damaged.*dspark profile"):
        CostTable.load(path)
