"""What is known of each prefix after each round, and what is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dspark.calibration.rounds import Judged, outcomes, to_arrays
from dspark.core import RoundRecord
from dspark.errors import CheckpointError


def record(accepted: int, committed: int, verified: int = 4, stopped: bool = False) -> RoundRecord:
    return RoundRecord(4, verified, accepted, committed, stopped, (0.5,) * 4)


def known(*records: RoundRecord, max_new_tokens: int = 100) -> list[str]:
    """Each round's prefixes in short: + accepted, - not, ? unknown."""
    accepted_NK, valid_NK = outcomes(records, 4, max_new_tokens)
    return [
        "".join("-+"[a] if v else "?" for a, v in zip(accepted_K, valid_K, strict=True))
        for accepted_K, valid_K in zip(accepted_NK.tolist(), valid_NK.tolist(), strict=True)
    ]


def test_a_rejection_settles_all_later_prefixes() -> None:
    assert known(record(0, 1), record(2, 3), record(4, 5)) == ["----", "++--", "++++"]


def test_nothing_is_known_behind_an_accepted_stop() -> None:
    assert known(record(2, 2, stopped=True)) == ["++??"]
    assert known(record(4, 4, stopped=True)) == ["++++"]
    # A stop token that was drawn comes after a rejection, or after the whole block.
    assert known(record(1, 2, stopped=True)) == ["+---"]


def test_slots_behind_the_length_limit_never_count() -> None:
    # 6 tokens at most: the first comes with the prompt, 3 from the first round, room for 2.
    assert known(record(2, 3), record(2, 2), max_new_tokens=6) == ["++--", "++??"]
    # Rejections there are not used either: acceptances could not have been seen.
    assert known(record(2, 3), record(1, 2), max_new_tokens=6) == ["++--", "+-??"]
    assert known(record(2, 3), record(0, 1), record(0, 1), max_new_tokens=6) == [
        *("++--", "--??", "-???")
    ]


def test_slots_that_were_not_verified_are_unknown_unless_one_before_was_rejected() -> None:
    assert known(record(2, 3, verified=2), record(1, 2, verified=2)) == ["++??", "+---"]


def test_arrays_of_several_answers() -> None:
    overlaps = [0.9, 0.8, 0.3, 0.1]
    answers = [
        [Judged(record(2, 3), overlaps), Judged(record(4, 4, stopped=True))],
        [],
        [Judged(record(0, 1))],
    ]
    rounds = to_arrays(answers, 4, 100)
    assert (len(rounds), rounds.prompts) == (3, 3)
    assert rounds.accepted_NK.sum(axis=1).tolist() == [2, 4, 0]
    assert rounds.valid_NK.all()
    assert rounds.overlap_NK[0].tolist() == overlaps
    assert np.isnan(rounds.overlap_NK[1:]).all()
    nothing = to_arrays([], 4, 100)
    assert nothing.confidence_NK.shape == nothing.accepted_NK.shape == (0, 4)
    broken = replace(record(0, 1), confidence=(0.5, float("nan"), 0.5, 0.5))
    with pytest.raises(CheckpointError, match="not numbers"):
        to_arrays([[Judged(broken)]], 4, 100)
