"""Figures counted from round records by hand."""

from __future__ import annotations

import math

import pytest

from dspark.core import Request, RoundRecord
from dspark.engine import stats


def requests(*records: RoundRecord) -> list[Request]:
    half = len(records) // 2
    return [
        Request(1, [7], rounds=list(records[:half])),
        Request(2, [7], rounds=list(records[half:])),
    ]


ROUNDS = requests(
    RoundRecord(4, 4, 4, 5),  # all accepted, bonus
    RoundRecord(4, 4, 1, 2),  # slot 2 rejected
    RoundRecord(4, 2, 2, 3),  # only two verified
    RoundRecord(4, 4, 2, 2, True),  # slot 2 was a stop: slot 3 says nothing
    RoundRecord(4, 4, 1, 2, True),  # the correction after slot 2's rejection was a stop
    RoundRecord(4, 4, 3, 3),  # cut by the length limit
    RoundRecord(4, 0, 0, 1),  # nothing verified
)


def test_accepted_length() -> None:
    assert stats.accepted_length(ROUNDS) == pytest.approx((5 + 2 + 3 + 2 + 2 + 3 + 1) / 7)


def test_acceptance_by_position() -> None:
    assert stats.accept_counts(ROUNDS) == [(6, 6), (4, 6), (2, 2), (1, 1)]
    assert stats.accept_by_position(ROUNDS) == [1, pytest.approx(4 / 6), 1, 1]


def test_slots_that_nothing_reached() -> None:
    rows = requests(RoundRecord(3, 3, 0, 1))
    first, *rest = stats.accept_by_position(rows)
    assert first == 0
    assert len(rest) == 2
    assert all(map(math.isnan, rest))


def test_verified_and_wasted_tokens() -> None:
    assert stats.verified_tokens(ROUNDS) == 22
    assert stats.wasted_tokens(ROUNDS) == 22 - 13


def test_no_rounds() -> None:
    assert math.isnan(stats.accepted_length([Request(1, [7])]))
    assert stats.accept_by_position([]) == []
