"""Counting tokens, and choosing those of a reduced draft vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from dspark.data.responses import Response
from dspark.data.vocabulary import draft_vocabulary, token_frequencies
from dspark.errors import ConfigError, DataError


def answer(name: str, ids: list[int]) -> Response:
    response = np.array(ids, dtype=np.int32)
    return Response(name, "math", np.array([7], dtype=np.int32), response, 1.0, True)


def test_token_frequencies_count_responses() -> None:
    freq = token_frequencies([answer("a", [1, 1, 3]), answer("b", [1, 0])], vocab_size=5)
    assert freq.tolist() == [1, 3, 0, 1, 0]
    assert freq.dtype == np.int64
    with pytest.raises(DataError, match="a#0 has a token outside"):
        token_frequencies([answer("a", [5])], vocab_size=5)


def test_draft_vocabulary_takes_the_most_frequent() -> None:
    freq = np.array([5, 1, 9, 5, 0, 0], dtype=np.int64)
    ids, coverage = draft_vocabulary(freq, 2, [])
    assert ids.tolist() == [0, 2]  # 0 and 3 are equal: the lower id wins
    assert coverage == pytest.approx(14 / 20)
    ids, coverage = draft_vocabulary(freq, 3, [5, 5])
    assert ids.tolist() == [0, 2, 5]
    assert ids.dtype == np.int64
    assert coverage == pytest.approx(14 / 20)
    ids, coverage = draft_vocabulary(freq, 6)
    assert ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert coverage == 1


@pytest.mark.parametrize(("size", "always"), [(0, []), (7, []), (1, [0, 1]), (3, [6]), (3, [-1])])
def test_draft_vocabulary_refuses(size: int, always: list[int]) -> None:
    with pytest.raises(ConfigError):
        draft_vocabulary(np.ones(6, dtype=np.int64), size, always)


def test_draft_vocabulary_needs_counts() -> None:
    with pytest.raises(DataError, match="no token was counted"):
        draft_vocabulary(np.zeros(6, dtype=np.int64), 3)
