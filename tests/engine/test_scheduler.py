"""Policies by name, and plans that stay inside the cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.core import Batch, DraftDecision, Request
from dspark.engine.policies import Fixed, Off
from dspark.engine.policy_names import parse_policy
from dspark.engine.scheduler import Scheduler
from dspark.errors import ConfigError

DRAFTS: Any = SimpleNamespace(lengths=None)


def all_of(*anchor_positions: int) -> DraftDecision:
    """Requests with these anchor positions, all drafted."""
    requests = [Request(i, [7] * p, output_ids=[8]) for i, p in enumerate(anchor_positions)]
    return DraftDecision(Batch([], requests))


@pytest.mark.parametrize(("text", "length"), [("off", 0), ("fixed:1", 1), ("fixed:7", 7)])
def test_policies_by_name(text: str, length: int) -> None:
    policy = parse_policy(text, 7)
    assert (policy.name, policy.draft_len) == (text, length)
    assert list(policy.lengths(all_of(3, 4), DRAFTS)) == [length, length]


@pytest.mark.parametrize(
    ("text", "block_size", "words"),
    [
        ("fixd:3", 7, r"Unknown policy \(found: fixd:3\). Use auto, off, fixed:K"),
        ("fixed", 7, "Use auto, off, fixed:K"),
        ("fixed:-1", 7, "Use auto, off, fixed:K"),
        ("", 7, "Use auto, off, fixed:K"),
        ("fixed:0", 7, "block size 7"),
        ("fixed:8", 7, "block size 7"),
        ("fixed:3", 0, "needs a drafter"),
        ("threshold:1.5", 7, "Use auto, off, fixed:K"),
        ("threshold:-0.5", 7, "Use auto, off, fixed:K"),
        ("threshold:0.5", 0, "needs a drafter"),
    ],
)
def test_mistakes_name_the_choices(text: str, block_size: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_policy(text, block_size)


def test_a_threshold_stops_at_the_first_unsure_slot() -> None:
    policy = parse_policy("threshold:0.5", 3)
    assert (policy.name, policy.draft_len) == ("threshold:0.5", 3)
    rows = [[0.9, 0.5, 0.6], [0.9, 0.4, 0.9], [0.1, 0.9, 0.9]]
    drafts: Any = SimpleNamespace(confidence_RK=np.array(rows))
    assert list(policy.lengths(all_of(3, 4, 5), drafts)) == [3, 1, 0]


@given(hypothesis.extra.numpy.arrays(float, 6, elements=st.floats(0, 1)), st.data())
def test_later_confidences_never_matter(sure_K: Any, data: Any) -> None:
    """Whether slot k is admitted hangs on confidences up to k alone."""
    k = data.draw(st.integers(0, 5))
    other_K = sure_K.copy()
    other_K[k + 1 :] = data.draw(st.floats(0, 1))
    policy = parse_policy("threshold:0.5", 6)
    admitted = [
        policy.lengths(all_of(3), cast(Any, SimpleNamespace(confidence_RK=x[None])))[0] > k
        for x in (sure_K, other_K)
    ]
    assert admitted[0] == admitted[1]


def test_nothing_is_verified_without_drafts() -> None:
    assert Scheduler(Fixed(4), 100).plan(all_of(3, 5), None) == [0, 0]
    assert Scheduler(Off(), 100).plan(all_of(), None) == []


def test_plans_stay_inside_the_cache() -> None:
    plan = Scheduler(Fixed(4), 20).plan(all_of(3, 15, 16, 18), DRAFTS)
    assert plan == [4, 4, 3, 1]
