"""The trace file: records, and what survives an end in the middle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dspark.core import Request, RoundRecord
from dspark.errors import ConfigError, DataError
from dspark.evaluation.trace import TraceFile, key_of, records

HEADER = {"target": "tiny", "seed": 0}
A, B = ("d", "one", 0.0, "fixed:2"), ("d", "two", 1.0, "threshold:0.5")
ROUNDS = [RoundRecord(2, 2, 1, 2, False, (0.98765432, 0.5)), RoundRecord(2, 2, 2, 2, True)]


def requests(count: int = 1) -> list[Request]:
    return [Request(1, [7, 8], output_ids=[3] * 5, rounds=list(ROUNDS)) for _ in range(count)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A trace with two records of cell A and four of cell B."""
    path = tmp_path / "trace.jsonl"
    trace = TraceFile(path, {"made_at": "first"})
    assert trace.begin(HEADER, {}) == set()
    trace.append(A, ["p0"], requests())
    trace.append(B, ["p0", "p1"], requests(2))
    return path


def test_records(path: Path) -> None:
    header, first, *rest = lines(path)
    assert header == {"schema": "dspark.trace/1", **HEADER, "provenance": {"made_at": "first"}}
    assert first == {
        "drafter": "d",
        "dataset": "one",
        "prompt": "p0",
        "temperature": 0.0,
        "policy": "fixed:2",
        "round": 0,
        "verified": 2,
        "accepted": 1,
        "committed": 2,
        "stopped": False,
        "confidence": [0.987654, 0.5],
    }
    assert [r["round"] for r in rest] == [1, 0, 1, 0, 1]
    assert [r["prompt"] for r in rest] == ["p0", "p0", "p0", "p1", "p1"]
    assert key_of(first) == A
    assert list(records(A, ["p0"], requests()))[1]["confidence"] == []


def test_finished_cells_stay_and_others_go(path: Path) -> None:
    before = lines(path)
    trace = TraceFile(path, {"made_at": "second"})
    assert trace.begin(HEADER, {A: 2}) == {A}
    assert lines(path) == before[:3]  # the first run's provenance too
    trace.append(B, ["p0", "p1"], requests(2))
    assert lines(path) == before


def test_a_cell_whose_records_are_not_all_there_is_named_unfinished(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(path.stat().st_size - 20)
    assert TraceFile(path).begin(HEADER, {A: 2, B: 4}) == {A}
    assert len(lines(path)) == 3
    nothing = ("d", "three", 0.0, "fixed:2")  # a cell without rounds has no records to lack
    assert TraceFile(path).begin(HEADER, {A: 2, nothing: 0}) == {A, nothing}


def test_other_settings_begin_anew(path: Path) -> None:
    trace = TraceFile(path, {"made_at": "second"})
    assert trace.begin({**HEADER, "seed": 1}, {A: 2}) == set()
    (header,) = lines(path)
    assert header["seed"] == 1
    assert header["provenance"] == {"made_at": "second"}


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compressed"):
        TraceFile(tmp_path / "trace.jsonl.gz")
    for content in ('{"schema": "dspark.trace/2"}\n', '{"prompt": "mine"}\n', "my notes"):
        file = tmp_path / "file"
        file.write_text(content)
        with pytest.raises(DataError, match=r"is no trace"):
            TraceFile(file)
        assert file.read_text() == content
