"""What the adaptive policies verify, on made-up confidences and costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark.core import Batch, SamplingParams
from dspark.engine.adaptive import HOLD, PolicyTables
from dspark.engine.adaptive_policies import Causal, Pipelined
from dspark.engine.scheduler import parse_policy
from dspark.engine.survival import UNKNOWN_ACCEPTANCE
from dspark.errors import ConfigError
from dspark.maths import admission
from dspark.tables.calibration import CalibrationEntry, CalibrationTable
from dspark.tables.cost import rising
from made_up import GREEDY, SEEDED, K, batch, drafts, record, tables


@pytest.mark.parametrize("name", ["causal", "pipelined"])
def test_by_name(name: str) -> None:
    policy = parse_policy(name, K, tables())
    assert (policy.name, policy.draft_len, policy.needs_confidence) == (name, K, True)
    with pytest.raises(ConfigError, match=r"what a round costs.*dspark profile"):
        parse_policy(name, K)
    with pytest.raises(ConfigError, match="needs a drafter"):
        parse_policy(name, 0, tables())


def test_causal_verifies_what_pays() -> None:
    policy, sure = Causal(tables(), K), drafts([0.9, 0.9, 0.2, 0.9])
    assert policy.plan(batch(), sure) == [2]
    assert Causal(tables(row_ms=0.01), K).plan(batch(), sure) == [4]  # rows are all but free
    assert Causal(tables(row_ms=50), K).plan(batch(), sure) == [0]


def test_a_full_batch_makes_the_policy_choosy() -> None:
    """The same draft is worth less where many requests share the step."""
    policy = Causal(tables(row_ms=2), K)
    alone = policy.plan(batch(), drafts([0.6, 0.6, 0.6, 0.6]))
    together = policy.plan(batch(*[GREEDY] * 30), drafts(*[[0.6] * K] * 30))
    assert alone[0] > max(together)
    assert set(together) == {0}


@pytest.mark.parametrize("kind", [Causal, Pipelined])
@pytest.mark.parametrize("row_ms", [0.01, 1.0, 4.0])
def test_prompts_in_the_step_do_not_make_drafts_cheap(kind: Any, row_ms: float) -> None:
    """They have to be run whatever is drafted; only what a draft adds to the time counts."""
    sure, found = drafts([0.5, 0.5, 0.5, 0.5]), []
    for prompts in (0, 40, 400):
        policy, step = kind(tables(row_ms=row_ms), K), batch(prompts=prompts)
        found.append((policy.wants(step), policy.steps(step), policy.plan(step, sure)))
    assert found[0] == found[1] == found[2]


def test_a_prompt_longer_than_the_times_laid_out_stops_nothing() -> None:
    policy, step = Causal(tables(), K), batch(prompts=6000)
    assert len(policy.wants(step)) == 1
    assert policy.plan(step, drafts([0.5] * K)) == [0]


def test_calibration_is_applied() -> None:
    """A confident head that is wrong half of the time."""
    entry = CalibrationEntry(0.0, 1.0, 0, (50.0,) * K, (0.5, 0.2, 0.1, 0.0))
    table = CalibrationTable("d", "dspark", K, "t", (entry,))
    sure = drafts([0.95, 0.95, 0.95, 0.95])
    assert Causal(tables(), K).plan(batch(), sure) == [4]
    assert Causal(tables(calibration=table), K).plan(batch(), sure)[0] < 4
    warm = Causal(tables(calibration=table), K)  # no entry for 0.7: the nearest stands in
    assert warm.plan(batch(SamplingParams(temperature=0.7)), sure)[0] < 4


def pipelined(row_ms: float = 1.0, smoothing: float = 1.0) -> Pipelined:
    policy = Pipelined(tables(row_ms), K)
    policy.smoothing = smoothing
    return policy


def test_pipelined_takes_its_capacity_from_two_steps_ago() -> None:
    policy, first = pipelined(), batch()
    good, bad = drafts([0.95] * K), drafts([0.05] * K)
    start = policy.plan(first, bad)  # no history: the mean
    assert start == policy.plan(first, good)
    assert policy.plan(first, good) == [0]  # two steps ago all was bad
    assert policy.plan(first, bad) == [4]  # two steps ago all was good
    assert policy.plan(first, bad) == [4]
    assert policy.plan(first, bad) == [0]


def test_pipelined_gives_the_capacity_to_the_surest() -> None:
    policy, two = pipelined(row_ms=2), batch(GREEDY, GREEDY)
    for _ in range(2):
        policy.plan(two, drafts([0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]))
    assert policy.plan(two, drafts([0.1] * K, [0.9, 0.8, 0.8, 0.8])) == [0, 2]


def test_pipelined_smooths_what_it_remembers() -> None:
    policy, first = pipelined(smoothing=0.5), batch()
    policy.plan(first, drafts([0.9, 0.1, 0.5, 0.5]))
    policy.plan(first, drafts([0.9, 0.9]))  # only two slots were drafted
    half = UNKNOWN_ACCEPTANCE
    old, new = policy._past
    assert old[0] == pytest.approx([0.7, 0.3, half, half])
    assert new[0] == pytest.approx([0.8, 0.6, half, half])


def test_pipelined_drafts_no_more_than_it_has_room_for() -> None:
    policy, first = pipelined(), batch()
    for sure in (0.9, 0.01, 0.01):
        steps = policy.steps(first)
        [length] = policy.plan(first, drafts([sure] * steps))
        assert 1 <= steps <= K
        assert length <= steps
    assert policy.steps(first) == 1  # no room at all, but one to learn from
    assert policy.plan(first, drafts([0.99])) == [0]
    seeded = batch(GREEDY, SEEDED)
    assert policy.steps(seeded) >= policy.steady_length(SEEDED)


def test_pipelined_forgets_requests_that_left() -> None:
    policy, two = pipelined(), batch(GREEDY, GREEDY)
    policy.plan(two, drafts(*[[0.5] * K] * 2))
    alone, plain = Batch([], two.decode[:1]), Batch([], two.decode[:1], two.decode[1:])
    policy.steps(plain)
    assert len(policy._average) == 2
    policy.steps(alone)
    assert len(policy._average) == 1


def short_tables(slot_ms: float) -> PolicyTables:
    """Cheap rows, and drafting that costs so much a slot."""
    short = tuple((slots, rising([(1, slot_ms * slots / 1e3)])) for slots in (1, 2))
    cost = replace(
        tables(row_ms=0.1).cost, block=K, short=short, draft=rising([(1, slot_ms * K / 1e3)])
    )
    return PolicyTables(cost)


@pytest.mark.parametrize("kind", [Causal, Pipelined])
def test_slots_that_cost_much_are_not_drafted(kind: Any) -> None:
    """As many as pay by the past, and a spare; all where the table knows whole blocks alone."""
    steps = {}
    for slot_ms in (0.01, 3.0):
        policy = kind(short_tables(slot_ms), K)
        policy.wants(batch())
        steps[slot_ms] = policy.steps(batch())
    assert steps[3.0] <= 2 < steps[0.01]
    assert Causal(tables(), K).steps(batch()) == K


@pytest.mark.parametrize("kind", [Causal, Pipelined])
def test_slots_follow_the_past_alone(kind: Any) -> None:
    """Algorithms §8: the slots stand before a round's drafts, so no token decides on itself."""
    policy, present = kind(short_tables(1.0), K), batch()
    found = []
    for accepted in (0, K):
        present.decode[0].rounds += [record(K, K, accepted)] * 30
        for _ in range(HOLD):  # until the choice before no longer stands
            policy.wants(present)
        steps = policy.steps(present)
        assert policy.steps(present) == steps
        found.append(steps)
        for _ in range(2):  # what `pipelined` goes by
            policy.plan(present, drafts([0.99] * K))
    assert 1 <= found[0] < found[1] <= K


@pytest.mark.parametrize("kind", [Causal, Pipelined])
def test_a_request_with_a_seed_always_gets_a_whole_block(kind: Any) -> None:
    """What its slots say hangs on their number, and its text must not hang on its company."""
    policy = kind(short_tables(3.0), K)
    for company in ([], [GREEDY] * 8):
        policy.wants(batch(SEEDED, *company))
        assert policy.steps(batch(SEEDED, *company)) == K


SURE = st.lists(st.floats(0, 1), min_size=K, max_size=K)


@given(st.lists(SURE, min_size=3, max_size=3), st.data())
@settings(max_examples=200)
@pytest.mark.parametrize("kind", [Causal, Pipelined])
def test_later_confidences_never_decide(kind: Any, rows: list[list[float]], data: Any) -> None:
    """Algorithms §8, through the policy: whether (r, k) is admitted hangs on c up to k alone."""
    r, k = data.draw(st.integers(0, 2)), data.draw(st.integers(0, K - 1))
    other = [list(row) for row in rows]
    other[r][k + 1 :] = [data.draw(st.floats(0, 1))] * (K - k - 1)
    past = [drafts(*data.draw(st.permutations(rows))) for _ in range(2)]
    admitted = []
    for present in (rows, other):
        policy, three = kind(tables(row_ms=1.5), K), batch(GREEDY, GREEDY, GREEDY)
        for sure in past:
            policy.plan(three, sure)
        admitted.append(policy.plan(three, drafts(*present))[r] > k)
    assert admitted[0] == admitted[1]


@pytest.mark.parametrize("kind", [Causal, Pipelined])
def test_a_request_with_a_seed_keeps_its_length(kind: Any) -> None:
    policy = kind(tables(), K)
    lengths = set()
    for sure in (0.1, 0.5, 0.9):
        for company in ([], [GREEDY] * 8):
            present = batch(SEEDED, *company)
            lengths.add(policy.plan(present, drafts(*[[sure] * K] * len(present.decode)))[0])
    assert lengths == {policy.steady_length(SEEDED)}
    cold = SamplingParams(temperature=0.0, seed=5)  # greedy text hangs on no random number
    found = [policy.plan(batch(cold), drafts([s] * K))[0] for s in [0.01] * 3 + [0.99] * 3]
    assert len(set(found)) > 1


def test_the_steady_length_is_the_best_fixed_one() -> None:
    entry = CalibrationEntry(1.0, 1.0, 0, (1.0,) * K, (0.8, 0.6, 0.05, 0.01))
    policy = Causal(tables(calibration=CalibrationTable("d", "dspark", K, "t", (entry,))), K)
    theta = [(1 + sum(entry.mean_survival[:k])) / (0.002 + 0.010 + 0.001 * k) for k in range(K + 1)]
    assert policy.steady_length(SEEDED) == int(np.argmax(theta)) == 2


def test_requests_without_a_draft_count_in_the_plan() -> None:
    """They share the step: a token each, a row each."""
    policy, sure = Causal(tables(), K), drafts([0.3, 0.3, 0.3, 0.3])
    alone = batch()
    shared = Batch([], alone.decode, batch(*[GREEDY] * 40).decode)
    assert policy.plan(alone, sure) == [1]
    assert policy.plan(shared, sure) == [0]


def test_seeded_company_counts_in_the_expected_tokens() -> None:
    """Their drafts are verified anyway: they raise τ and the cost alike."""
    survival, seconds = [[0.5, 0.25]], [0.010, 0.011, 0.012]
    assert admission.causal(survival, seconds) == [2]
    assert admission.causal(survival, seconds, committed=9.0) == [0]
