"""What the adaptive policies verify, on made-up confidences and costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark.core import Batch, SamplingParams
from dspark.engine.acceptance import AcceptanceEstimator, ConfidenceMemory
from dspark.engine.cost_model import CostModel
from dspark.engine.draft_gate import DraftGate, FixedLengths
from dspark.engine.drafting import DraftPlanner
from dspark.engine.policies import PolicyTables
from dspark.engine.policy_names import causal, parse_policy, pipelined
from dspark.engine.scheduler import Adaptive
from dspark.engine.survival import UNKNOWN_ACCEPTANCE
from dspark.errors import ConfigError
from dspark.maths import admission
from dspark.tables.calibration import CalibrationEntry, CalibrationTable
from dspark.tables.cost import rising
from made_up import (
    GREEDY,
    SEEDED,
    K,
    batch,
    committed,
    decided,
    drafts,
    plan,
    record,
    step,
    tables,
)


@pytest.mark.parametrize("name", ["causal", "pipelined"])
def test_by_name(name: str) -> None:
    policy = parse_policy(name, K, tables())
    assert (policy.name, policy.draft_len, policy.needs_confidence) == (name, K, True)
    with pytest.raises(ConfigError, match=r"what a round costs.*dspark profile"):
        parse_policy(name, K)
    with pytest.raises(ConfigError, match="needs a drafter"):
        parse_policy(name, 0, tables())


def test_causal_verifies_what_pays() -> None:
    policy, sure = causal(tables(), K), drafts([0.9, 0.9, 0.2, 0.9])
    assert plan(policy, batch(), sure) == [2]
    assert plan(causal(tables(row_ms=0.01), K), batch(), sure) == [4]  # rows are all but free
    assert plan(causal(tables(row_ms=50), K), batch(), sure) == [0]


def test_a_full_batch_makes_the_policy_choosy() -> None:
    """The same draft is worth less where many requests share the step."""
    policy = causal(tables(row_ms=2), K)
    alone = plan(policy, batch(), drafts([0.6, 0.6, 0.6, 0.6]))
    together = plan(policy, batch(*[GREEDY] * 30), drafts(*[[0.6] * K] * 30))
    assert alone[0] > max(together)
    assert set(together) == {0}


@pytest.mark.parametrize("kind", [causal, pipelined])
@pytest.mark.parametrize("row_ms", [0.01, 1.0, 4.0])
def test_prompts_in_the_step_do_not_make_drafts_cheap(kind: Any, row_ms: float) -> None:
    """They have to be run whatever is drafted; only what a draft adds to the time counts."""
    sure, found = drafts([0.5, 0.5, 0.5, 0.5]), []
    for prompts in (0, 40, 400):
        policy, present = kind(tables(row_ms=row_ms), K), batch(prompts=prompts)
        decision = policy.decide(present)
        found.append((len(decision.batch.decode), decision.slots, plan(policy, present, sure)))
    assert found[0] == found[1] == found[2]


def test_a_prompt_longer_than_the_times_laid_out_stops_nothing() -> None:
    policy, present = causal(tables(), K), batch(prompts=6000)
    assert len(policy.gate.choose(present).wanted_R) == 1
    assert plan(policy, present, drafts([0.5] * K)) == [0]


def test_calibration_is_applied() -> None:
    """A confident head that is wrong half of the time."""
    entry = CalibrationEntry(0.0, 1.0, 0, (50.0,) * K, (0.5, 0.2, 0.1, 0.0))
    table = CalibrationTable("d", "dspark", K, "t", (entry,))
    sure = drafts([0.95, 0.95, 0.95, 0.95])
    assert plan(causal(tables(), K), batch(), sure) == [4]
    assert plan(causal(tables(calibration=table), K), batch(), sure)[0] < 4
    warm = causal(tables(calibration=table), K)  # no entry for 0.7: the nearest stands in
    assert plan(warm, batch(SamplingParams(temperature=0.7)), sure)[0] < 4


def fresh(row_ms: float = 1.0, smoothing: float = 1.0) -> Adaptive:
    """`pipelined` with another weight of the newest confidences."""
    known = tables(row_ms)
    acceptance, cost = AcceptanceEstimator(None, K), CostModel(known.cost, K, convex=False)
    fixed, memory = FixedLengths(None, cost), ConfidenceMemory(acceptance, smoothing)
    planner = DraftPlanner(acceptance, cost, fixed, memory)
    return Adaptive("pipelined", known, DraftGate(acceptance, cost, fixed), planner)


def test_pipelined_takes_its_capacity_from_two_steps_ago() -> None:
    policy, first = fresh(), batch()
    good, bad = drafts([0.95] * K), drafts([0.05] * K)
    start = step(policy, first, bad)  # no history: the mean
    assert start == step(policy, first, good)
    assert step(policy, first, good) == [0]  # two steps ago all was bad
    assert step(policy, first, bad) == [4]  # two steps ago all was good
    assert step(policy, first, bad) == [4]
    assert step(policy, first, bad) == [0]


def test_pipelined_gives_the_capacity_to_the_surest() -> None:
    policy, two = fresh(row_ms=2), batch(GREEDY, GREEDY)
    for _ in range(2):
        step(policy, two, drafts([0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]))
    assert plan(policy, two, drafts([0.1] * K, [0.9, 0.8, 0.8, 0.8])) == [0, 2]


def remembered(memory: ConfidenceMemory, batch: Batch, *sure: list[float]) -> Any:
    """Conditional confidences of the first request, after a step with these confidences."""
    memory.observe(committed(batch, drafts(*sure), [0] * len(sure)))
    survival_K = np.array(memory.expected(batch.decode[:1])[0])
    return survival_K / np.array([1.0, *survival_K[:-1]])


def test_pipelined_smooths_what_it_remembers() -> None:
    memory, first = ConfidenceMemory(AcceptanceEstimator(None, K), smoothing=0.5), batch()
    half = UNKNOWN_ACCEPTANCE
    assert remembered(memory, first, [0.9, 0.1, 0.5, 0.5]) == pytest.approx([half] * K)
    old = remembered(memory, first, [0.9, 0.9])  # only two slots were drafted
    assert old == pytest.approx([0.7, 0.3, half, half])
    assert remembered(memory, first, [0.1] * K) == pytest.approx([0.8, 0.6, half, half])


def test_pipelined_drafts_no_more_than_it_has_room_for() -> None:
    policy, first = fresh(), batch()
    for sure in (0.9, 0.01, 0.01):
        slots = decided(policy, first).slots
        [length] = step(policy, first, drafts([sure] * slots))
        assert 1 <= slots <= K
        assert length <= slots
    assert decided(policy, first).slots == 1  # no room at all, but one to learn from
    assert plan(policy, first, drafts([0.99])) == [0]
    seeded = batch(GREEDY, SEEDED)
    assert decided(policy, seeded).slots >= policy.planner.fixed.length(SEEDED)


def test_pipelined_forgets_requests_that_left() -> None:
    memory, two = (
        ConfidenceMemory(AcceptanceEstimator(None, K), smoothing=1.0),
        batch(GREEDY, GREEDY),
    )
    sure, alone = [0.9] * K, Batch([], two.decode[1:])
    for present in (Batch([], two.decode[1:], two.decode[:1]), alone):
        remembered(memory, two, sure, sure)
        remembered(memory, present, sure)
        stays = present is not alone
        assert (memory.expected(two.decode[:1])[0][0] == 0.9) is True
        remembered(memory, alone, sure)
        assert (memory.expected(two.decode[:1])[0][0] == 0.9) is stays


def short_tables(slot_ms: float) -> PolicyTables:
    """Cheap rows, and drafting that costs so much a slot."""
    short = tuple((slots, rising([(1, slot_ms * slots / 1e3)])) for slots in (1, 2))
    cost = replace(
        tables(row_ms=0.1).cost, block=K, short=short, draft=rising([(1, slot_ms * K / 1e3)])
    )
    return PolicyTables(cost)


@pytest.mark.parametrize("kind", [causal, pipelined])
def test_slots_that_cost_much_are_not_drafted(kind: Any) -> None:
    """As many as pay by the past, and a spare; all where the table knows whole blocks alone."""
    steps = {}
    for slot_ms in (0.01, 3.0):
        policy = kind(short_tables(slot_ms), K)
        steps[slot_ms] = policy.decide(batch()).slots
    assert steps[3.0] <= 2 < steps[0.01]
    assert decided(causal(tables(), K), batch()).slots == K


@pytest.mark.parametrize("kind", [causal, pipelined])
def test_slots_follow_the_past_alone(kind: Any) -> None:
    """Slots are chosen before a round's drafts, so no token decides on itself."""
    policy, present = kind(short_tables(1.0), K), batch()
    found = []
    for accepted in (0, K):
        present.decode[0].rounds += [record(K, K, accepted)] * 30
        slots = decided(policy, present).slots
        assert decided(policy, present).slots == slots
        found.append(slots)
        for _ in range(2):  # what `pipelined` goes by
            step(policy, present, drafts([0.99] * K))
    assert 1 <= found[0] < found[1] <= K


@pytest.mark.parametrize("kind", [causal, pipelined])
def test_a_request_with_a_seed_always_gets_a_whole_block(kind: Any) -> None:
    """What its slots say hangs on their number, and its text must not hang on its company."""
    policy = kind(short_tables(3.0), K)
    for company in ([], [GREEDY] * 8):
        assert decided(policy, batch(SEEDED, *company)).slots == K


SURE = st.lists(st.floats(0, 1), min_size=K, max_size=K)


@given(st.lists(SURE, min_size=3, max_size=3), st.data())
@settings(max_examples=200)
@pytest.mark.parametrize("kind", [causal, pipelined])
def test_later_confidences_never_decide(kind: Any, rows: list[list[float]], data: Any) -> None:
    """Through the policy: whether (r, k) is admitted hangs on c up to k alone."""
    r, k = data.draw(st.integers(0, 2)), data.draw(st.integers(0, K - 1))
    other = [list(row) for row in rows]
    other[r][k + 1 :] = [data.draw(st.floats(0, 1))] * (K - k - 1)
    past = [drafts(*data.draw(st.permutations(rows))) for _ in range(2)]
    admitted = []
    for present in (rows, other):
        policy, three = kind(tables(row_ms=1.5), K), batch(GREEDY, GREEDY, GREEDY)
        for sure in past:
            step(policy, three, sure)
        admitted.append(plan(policy, three, drafts(*present))[r] > k)
    assert admitted[0] == admitted[1]


@pytest.mark.parametrize("kind", [causal, pipelined])
def test_a_request_with_a_seed_keeps_its_length(kind: Any) -> None:
    policy = kind(tables(), K)
    lengths = set()
    for sure in (0.1, 0.5, 0.9):
        for company in ([], [GREEDY] * 8):
            present = batch(SEEDED, *company)
            lengths.add(step(policy, present, drafts(*[[sure] * K] * len(present.decode)))[0])
    assert lengths == {policy.planner.fixed.length(SEEDED)}
    cold = SamplingParams(temperature=0.0, seed=5)  # greedy text hangs on no random number
    found = [step(policy, batch(cold), drafts([s] * K))[0] for s in [0.01] * 3 + [0.99] * 3]
    assert len(set(found)) > 1


def test_the_steady_length_is_the_best_fixed_one() -> None:
    entry = CalibrationEntry(1.0, 1.0, 0, (1.0,) * K, (0.8, 0.6, 0.05, 0.01))
    policy = causal(tables(calibration=CalibrationTable("d", "dspark", K, "t", (entry,))), K)
    theta = [(1 + sum(entry.mean_survival[:k])) / (0.002 + 0.010 + 0.001 * k) for k in range(K + 1)]
    assert policy.planner.fixed.length(SEEDED) == int(np.argmax(theta)) == 2


def test_requests_without_a_draft_count_in_the_plan() -> None:
    """They share the step: a token each, a row each."""
    policy, sure = causal(tables(), K), drafts([0.3, 0.3, 0.3, 0.3])
    alone = batch()
    shared = Batch([], alone.decode, batch(*[GREEDY] * 40).decode)
    assert plan(policy, alone, sure) == [1]
    assert plan(policy, shared, sure) == [0]


def test_seeded_company_counts_in_the_expected_tokens() -> None:
    """Their drafts are verified anyway: they raise τ and the cost alike."""
    survival, seconds = [[0.5, 0.25]], [0.010, 0.011, 0.012]
    assert admission.causal(survival, seconds) == [2]
    assert admission.causal(survival, seconds, committed=9.0) == [0]
