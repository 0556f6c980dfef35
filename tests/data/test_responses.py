from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark.data.responses import Response, ResponseRow, load_responses, split_held_out
from dspark.errors import ConfigError, DataError
from fakes import write_jsonl


def row(name: str = "a", prompts: int = 3, responses: int = 4, /, **changes: Any) -> dict[str, Any]:
    """A good row with that many prompt and response tokens."""
    return {
        "id": name,
        "domain": "math",
        "temperature": 0.6,
        "prompt_ids": list(range(10, 10 + prompts)),
        "response_ids": list(range(20, 20 + responses)),
        "finished": True,
    } | changes


def answer(name: str, ids: list[int]) -> Response:
    array = np.array(ids, dtype=np.int32)
    return Response(name, "math", array, array, 1.0, True)


def test_load_from_several_files(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [row("a"), row("b"), row("a")])
    two = write_jsonl(tmp_path / "two.jsonl.gz", [row("a", temperature=1, finished=False)])
    got = load_responses([str(one), str(two)])
    assert [r.key for r in got] == ["a#0", "b#0", "a#1", "a#2"]
    last = got[-1]
    assert (last.id, last.domain, last.temperature, last.finished) == ("a", "math", 1.0, False)
    assert last.prompt_ids.tolist() == [10, 11, 12]
    assert last.response_ids.tolist() == [20, 21, 22, 23]
    assert last.prompt_ids.dtype == last.response_ids.dtype == np.int32
    assert len(last) == 7


def test_max_length_cuts_and_skips(tmp_path: Path) -> None:
    rows = [row("long", 3, 9), row("fits", 3, 2), row("full", 5, 1), row("full", 1, 1)]
    got = load_responses([write_jsonl(tmp_path / "r.jsonl", rows)], max_length=5)
    assert [(r.key, len(r.response_ids), r.finished) for r in got] == [
        ("long#0", 2, False),
        ("fits#0", 2, True),
        ("full#1", 1, True),
    ]
    with pytest.raises(DataError, match="no response is left"):
        load_responses([write_jsonl(tmp_path / "s.jsonl", [row("a", 5)])], max_length=5)


def test_row_survives_reading_and_writing() -> None:
    full = row(source="s", license="MIT", prompt="p", response="r", top_p=0.95, round=3)
    assert ResponseRow.from_json(full).to_json() == full
    read = ResponseRow.from_json(row())
    assert read.top_p is None
    assert "top_p" not in read.to_json()
    assert ResponseRow.from_json(read.to_json()).to_json() == read.to_json()


@pytest.mark.parametrize(
    "field", ["id", "domain", "temperature", "prompt_ids", "response_ids", "finished"]
)
def test_missing_field_is_named(tmp_path: Path, field: str) -> None:
    bad = row()
    del bad[field]
    file = write_jsonl(tmp_path / "r.jsonl", [row(), bad])
    with pytest.raises(DataError, match=rf"r\.jsonl:2 has no field '{field}'"):
        load_responses([file])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 3),
        ("id", ""),
        ("domain", None),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", -1),
        ("temperature", float("nan")),
        pytest.param("temperature", 10**400, id="huge"),
        ("top_p", []),
        ("top_p", 1.5),
        ("prompt_ids", []),
        ("prompt_ids", "1 2"),
        ("response_ids", []),
        ("response_ids", [1, 2.0]),
        ("response_ids", [True]),
        ("response_ids", [[1]]),
        ("response_ids", [-1]),
        ("response_ids", [2**31]),
        ("finished", 1),
        ("response", 5),
    ],
)
def test_bad_field_is_named(tmp_path: Path, field: str, value: object) -> None:
    file = write_jsonl(tmp_path / "r.jsonl", [row(), row(**{field: value})])
    with pytest.raises(DataError, match=rf"r\.jsonl:2: {field}"):
        load_responses([file])


def test_bad_sources(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "r.jsonl", [row()])
    with pytest.raises(ConfigError, match="no response file"):
        load_responses([])
    with pytest.raises(ConfigError, match="max_length"):
        load_responses([file], max_length=1)
    with pytest.raises(DataError, match="given twice"):
        load_responses([file, tmp_path / "." / "r.jsonl"])
    with pytest.raises(DataError, match="missing"):
        load_responses([file, "missing.jsonl"])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="is empty"):
        load_responses([file, tmp_path / "empty.jsonl"])


def test_split_depends_on_id_and_seed_alone() -> None:
    few = [answer(f"p{n % 400}", [n % 7]) for n in range(800)]
    more = [answer(f"q{n}", [1]) for n in range(300)] + few[::-1]
    train, held_out = split_held_out(few, 0.1, seed=0)
    held = {r.id for r in held_out}
    assert len(train) + len(held_out) == 800
    assert held.isdisjoint(r.id for r in train)  # both samples of a prompt go together
    assert 20 <= len(held) <= 60
    _, held_more = split_held_out(more, 0.1, seed=0)
    assert held == {r.id for r in held_more if r.id.startswith("p")}
    _, larger = split_held_out(few, 0.3, seed=0)
    assert held < {r.id for r in larger}
    assert held != {r.id for r in split_held_out(few, 0.1, seed=1)[1]}
    assert split_held_out(few, 0, seed=0)[1] == []


def test_split_is_the_same_everywhere() -> None:
    _, held_out = split_held_out([answer(f"p{n}", [1]) for n in range(20)], 0.2, seed=0)
    assert [r.id for r in held_out] == ["p2", "p10", "p14"]


@pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
def test_split_refuses_bad_shares(share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        split_held_out([], share, seed=0)
