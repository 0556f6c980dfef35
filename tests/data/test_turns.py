"""Rows of a conversation as one sequence: what is an answer in it, and what is context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark.data.responses import ResponseRow, load_responses
from dspark.data.vocabulary import token_frequencies
from dspark.errors import DataError


def row(name: str, prompt: list[int], answer: list[int], **more: Any) -> dict[str, Any]:
    base = {"id": name, "domain": "chat", "temperature": 1.0, "top_p": 1.0, "finished": True}
    return base | {"prompt_ids": prompt, "response_ids": answer} | more


FIRST = row("a", [1, 2], [10, 11], turn=0)
SECOND = row("a", [1, 2, 10, 11, 3, 4], [12, 13, 14], turn=1)
THIRD = row("a", [1, 2, 10, 11, 3, 4, 12, 13, 14, 5], [15], turn=2, finished=False)
OTHER = row("b", [7], [20, 21], turn=0)


def written(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_turns_are_one_sequence_with_context_between(tmp_path: Path) -> None:
    path = written(tmp_path, FIRST, OTHER, SECOND, THIRD)
    a, b = load_responses([path], join_turns=True)
    assert [*a.prompt_ids, *a.response_ids] == [*THIRD["prompt_ids"], *THIRD["response_ids"]]
    assert a.prompt_ids.tolist() == [1, 2]
    assert a.response_ids[a.completion_mask].tolist() == [10, 11, 12, 13, 14, 15]
    assert a.response_ids[~a.completion_mask].tolist() == [3, 4, 5]
    assert (a.finished, a.key) == (False, "a#0")
    assert (b.response_ids.tolist(), b.context, b.key) == ([20, 21], (), "b#0")
    freq = token_frequencies([a, b], 30)
    assert np.flatnonzero(freq).tolist() == [10, 11, 12, 13, 14, 15, 20, 21]


def test_without_joining_each_row_is_a_response(tmp_path: Path) -> None:
    found = load_responses([written(tmp_path, FIRST, SECOND)])
    assert [r.response_ids.tolist() for r in found] == [[10, 11], [12, 13, 14]]
    assert [r.key for r in found] == ["a#0", "a#1"]
    assert all(r.completion_mask.all() for r in found)


@pytest.mark.parametrize(
    "second",
    [
        SECOND | {"prompt_ids": [1, 2, 10, 99, 3, 4]},  # the template wrote the answer otherwise
        SECOND | {"prompt_ids": [1, 2, 10, 11]},  # nothing between
        SECOND | {"turn": 2},  # the one between is missing
        SECOND | {"turn": 0},  # another sample
        SECOND | {"id": "c"},
        {key: value for key, value in SECOND.items() if key != "turn"},
    ],
)
def test_what_does_not_follow_stays_apart(tmp_path: Path, second: dict[str, Any]) -> None:
    found = load_responses([written(tmp_path, FIRST, second)], join_turns=True)
    assert [r.response_ids.tolist() for r in found] == [[10, 11], [12, 13, 14]]
    assert len({r.key for r in found}) == 2


def test_two_samples_of_a_conversation(tmp_path: Path) -> None:
    again = FIRST | {"response_ids": [10, 16]}
    later = SECOND | {"prompt_ids": [1, 2, 10, 16, 3, 4]}
    paths = [written(tmp_path, FIRST, SECOND), written(tmp_path, again, later, name="more.jsonl")]
    found = load_responses(paths, join_turns=True)
    assert [r.response_ids.tolist() for r in found] == [
        [10, 11, 3, 4, 12, 13, 14],
        [10, 16, 3, 4, 12, 13, 14],
    ]
    assert len({r.key for r in found}) == 2


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [(9, [10, 11, 3, 4, 12, 13, 14]), (8, [10, 11, 3, 4, 12, 13]), (6, [10, 11])],
)
def test_a_longest_length_cuts_the_last_answer_that_fits(
    tmp_path: Path, max_length: int, expected: list[int]
) -> None:
    (found,) = load_responses([written(tmp_path, FIRST, SECOND)], max_length, join_turns=True)
    assert found.response_ids.tolist() == expected
    assert len(found) <= max_length
    assert found.finished is (max_length != 8)


def test_a_row_keeps_its_turn(tmp_path: Path) -> None:
    back = ResponseRow.from_json(ResponseRow.from_json(SECOND).to_json())
    assert back.turn == 1
    assert ResponseRow.from_json(row("x", [1], [2])).to_json().keys().isdisjoint({"turn"})
    for wrong in (-1, 1.0, True, "1"):
        with pytest.raises(DataError, match="turn must be a whole number from 0"):
            ResponseRow.from_json(SECOND | {"turn": wrong})
