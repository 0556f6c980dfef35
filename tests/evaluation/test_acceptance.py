"""Figures of a cell against round records counted by hand."""

from __future__ import annotations

import pytest

from dspark.core import Request, RoundRecord
from dspark.engine import stats
from dspark.evaluation.acceptance import figures


def request(output: int, *rounds: RoundRecord) -> Request:
    return Request(1, [7], output_ids=[5] * output, rounds=list(rounds))


REQUESTS = [
    request(9, RoundRecord(3, 3, 3, 4), RoundRecord(3, 3, 1, 2), RoundRecord(3, 2, 2, 2, True)),
    request(4, RoundRecord(3, 3, 0, 1), RoundRecord(3, 0, 0, 1), RoundRecord(3, 1, 0, 1)),
    request(1),  # its first token ended it: no rounds
]
IDS = ["p0", "p1", "p2"]


def test_figures_by_hand() -> None:
    found = figures("set", IDS, REQUESTS, 3, 2.0)
    assert found["prompts"] == 3
    assert found["new_tokens"] == 14
    assert found["rounds"] == 6
    assert found["accepted_length"] == round(11 / 6, 4)
    # Slot 1: 3 of 5 rounds that verified it. Slot 3 of the third round was never judged.
    assert found["accept_by_position"] == [0.6, round(2 / 3, 4), 1.0]
    assert found["verified_tokens"] == 12
    assert found["wasted_tokens"] == 6
    assert found["tokens_per_s"] == 7.0
    low, high = found["accepted_length_ci"]
    assert low == 1.0
    assert high == pytest.approx(8 / 3, abs=1e-3)
    assert found["per_prompt"] == {
        "ids": IDS,
        "committed": [8, 3, 0],
        "rounds": [3, 3, 0],
        "accepted": [[3, 2, 1], [0, 0, 0], [0, 0, 0]],
        "reached": [[3, 3, 1], [2, 0, 0], [0, 0, 0]],
    }


def test_per_prompt_counts_add_up_to_the_figures() -> None:
    found = figures("set", IDS, REQUESTS, 3, 1.0)
    each = found["per_prompt"]
    assert sum(each["committed"]) / sum(each["rounds"]) == pytest.approx(
        stats.accepted_length(REQUESTS)
    )
    accepted, reached = (
        [sum(slot) for slot in zip(*each[k], strict=True)] for k in ("accepted", "reached")
    )
    assert list(zip(accepted, reached, strict=True)) == stats.accept_counts(REQUESTS)


def test_slots_that_nothing_reached_are_listed_as_unknown() -> None:
    found = figures("set", ["p1"], REQUESTS[1:2], 5, 1.0)
    assert found["accept_by_position"] == [0.0, None, None, None, None]
    assert found["accept_by_position_ci"] == [[0.0, 0.0], None, None, None, None]
    assert found["per_prompt"]["reached"] == [[2, 0, 0, 0, 0]]


def test_answers_without_rounds() -> None:
    found = figures("set", ["p2"], REQUESTS[2:], 2, 1.0)
    assert (found["accepted_length"], found["accepted_length_ci"]) == (None, None)
    assert found["accept_by_position"] == [None, None]
    assert found["rounds"] == 0
