"""The policy `auto`: when it steps out of line, what it learns, and what it never learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark.core import (
    Batch,
    Chunk,
    Request,
    RoundRecord,
    SamplingParams,
    StepOutput,
    StepRecord,
    TokenKind,
)
from dspark.engine.cost_model import PAIRS, StepTimes
from dspark.engine.exploration import FIRST_TRY, LAST_TRY, MOST_TRIED, PLAIN_EVERY, TRY_STEPS
from dspark.engine.policies import Off, PolicyTables
from dspark.engine.policy_names import auto, causal, parse_policy
from dspark.engine.scheduler import Adaptive
from dspark.tables.cost import rising
from made_up import GREEDY, SEEDED, K, batch, decided, drafts, plan, tables

Accept = Callable[[int], int]


@dataclass
class Course:
    """Steps of a policy on made-up outcomes and times.

    Attributes:
        accept: accepted tokens of so many verified ones.
        slow: factor on what rounds with drafts take, by the table.
        neighbour: factor on every step, which the table knows nothing of.
        sure: confidence of every slot.
    """

    policy: Adaptive
    accept: Accept = lambda verified: verified
    slow: float = 1.0
    neighbour: float = 1.0
    sure: float = 0.9
    requests: list[Request] = field(default_factory=lambda: batch().decode)
    drafted: list[int] = field(default_factory=list)
    peaks: bool = False

    def step(self, prompts: int = 0) -> bool:
        """One step; whether anybody was drafted."""
        prompt = [Chunk(Request(99, [7] * prompts), 0, prompts)] if prompts else []
        decision = self.policy.decide(Batch(prompt, self.requests))
        present, slots = decision.batch, decision.slots
        lengths: list[int] = []
        if present.decode:
            sure_RK = np.full((len(present.decode), slots), self.sure)
            block: Any = SimpleNamespace(confidence_RK=sure_RK, peaks=self.peaks)
            lengths = list(self.policy.lengths(decision, block))
        outputs = [
            self._round(r, slots, length)
            for r, length in zip(present.decode, lengths, strict=False)
        ]
        step = StepRecord(
            decoding=len(self.requests),
            drafted=len(present.decode),
            slots=slots,
            rows=len(self.requests) + sum(lengths),
            prompts=prompts,
            late=0,
            seconds=1.0,
            outputs=outputs,
            peaks=self.peaks,
        )
        seconds = self.policy.planner.cost.predicted_s(step) * (
            self.slow if present.decode else 1.0
        )
        self.policy.observe(replace(step, seconds=seconds * self.neighbour))
        self.drafted.append(len(present.decode))
        return bool(present.decode)

    def _round(self, request: Request, slots: int, length: int) -> StepOutput:
        accepted = min(self.accept(length), length)
        sure = (self.sure,) * slots
        record = RoundRecord(slots, length, accepted, accepted + 1, confidence=sure)
        request.rounds.append(record)
        return StepOutput(request, [1] * (accepted + 1), [TokenKind.DRAWN], False, record)

    def run(self, steps: int) -> float:
        """Share of steps with drafts."""
        return sum(self.step() for _ in range(steps)) / steps


def wanted(policy: Adaptive, *requests: Request) -> list[bool]:
    return list(policy.gate.choose(Batch([], list(requests))).wanted_R)


def nothing(verified: int) -> int:
    return 0


def test_by_name() -> None:
    policy = parse_policy("auto", K, tables())
    assert (policy.name, policy.draft_len, policy.needs_confidence) == ("auto", K, False)
    assert isinstance(policy, Adaptive)
    assert isinstance(parse_policy("auto", 0), Off)


def test_before_anything_is_learned_it_is_causal() -> None:
    for row_ms in (0.01, 1.0, 10.0):
        present, sure = batch(GREEDY, GREEDY), drafts([0.9, 0.9, 0.2, 0.9], [0.3] * K)
        one, other = (kind(tables(row_ms), K) for kind in (auto, causal))
        assert one.decide(present) == other.decide(present)
        assert plan(one, present, sure) == plan(other, present, sure)


def test_good_drafts_are_hardly_interrupted() -> None:
    course = Course(auto(tables(), K))
    assert course.run(8 * PLAIN_EVERY) > 0.97
    assert not all(course.drafted[:16])  # the first looks come early


def test_a_useless_drafter_costs_next_to_nothing() -> None:
    course = Course(auto(tables(), K), nothing)
    assert sum(map(bool, (course.step() for _ in range(256)))) < 20
    assert course.run(4000) < 0.01


def test_a_new_request_of_a_useless_drafter_is_not_drafted_for_again() -> None:
    policy = auto(tables(), K)
    Course(policy, nothing).run(FIRST_TRY - 1)
    for _ in range(4):
        young = Request(1000 + _, [7], GREEDY, output_ids=[8])
        assert wanted(policy, young) == [False]
    other = Request(2000, [7], SamplingParams(temperature=1.0), output_ids=[8])
    assert wanted(policy, other) == [True]  # another way of sampling


@pytest.mark.parametrize("count", [3, 9, 32])
def test_a_try_of_many_requests_drafts_for_a_few(count: int) -> None:
    """What they show stands for all; and whoever keeps a length keeps it."""
    policy = auto(tables(row_ms=0.05), K)
    course = Course(policy, nothing, requests=batch(*[GREEDY] * count).decode)
    course.run(400)
    tried = [sum(wanted(policy, *course.requests)) for _ in range(2 * LAST_TRY)]
    assert 0 < max(tried) <= min(2 * MOST_TRIED, count)


def test_drafts_that_get_better_are_found_again() -> None:
    course = Course(auto(tables(), K), nothing)
    course.run(FIRST_TRY)
    course.accept = lambda verified: verified
    course.run(4 * LAST_TRY)
    assert course.run(200) > 0.9


def test_a_stale_table_does_not_keep_drafting_on() -> None:
    course = Course(auto(tables(), K), slow=3.0)
    course.run(64)
    assert course.policy.planner.cost.correction.ratio(1) == pytest.approx(3.0)
    assert course.run(640) < 0.1


def test_a_slow_minute_does_not_silence_drafting_for_good() -> None:
    course = Course(auto(tables(), K), slow=3.0)
    course.run(2000)
    assert course.policy.planner.cost.correction.ratio(1) == pytest.approx(3.0)
    course.slow = 1.0
    course.run(PAIRS * PLAIN_EVERY)
    assert course.policy.planner.cost.correction.ratio(1) == pytest.approx(1.0)
    assert course.run(200) > 0.9


def test_a_table_that_makes_drafts_look_dear_is_mended() -> None:
    """Tries show that rounds with drafts take half of what it says."""
    dear = replace(tables().cost, draft=rising([(1, 0.022)]))
    course = Course(auto(PolicyTables(dear), K))
    course.accept = lambda verified: 1
    assert course.run(FIRST_TRY - 1) == 0
    course.slow = 0.45
    course.run(8 * PLAIN_EVERY)
    assert course.policy.planner.cost.correction.ratio(1) == pytest.approx(0.45)
    assert course.run(100) > 0.9


def test_a_neighbour_who_slows_every_step_does_not_count() -> None:
    course = Course(auto(tables(), K))
    for neighbour in (1.0, 5.0, 1.0):
        course.neighbour = neighbour
        course.run(200)
    assert course.policy.planner.cost.correction.ratio(1) == pytest.approx(1.0, abs=0.01)
    assert course.run(100) > 0.9


def test_numbers_of_requests_are_kept_apart() -> None:
    course = Course(auto(tables(row_ms=0.1), K), slow=2.0)
    course.run(64)
    assert course.policy.planner.cost.correction.ratio(1) == pytest.approx(2.0)
    assert course.policy.planner.cost.correction.ratio(2) == 1.0


def test_a_try_verifies_a_token_whatever_the_confidences_say() -> None:
    course = Course(auto(tables(), K), nothing)
    course.run(FIRST_TRY)
    course.sure = 1e-6
    before = len(course.requests[0].rounds)
    course.run(6 * FIRST_TRY)
    tried = course.requests[0].rounds[before:]
    assert len(tried) >= TRY_STEPS
    assert {record.verified for record in tried} == {1}


@pytest.mark.parametrize(
    "change", [{"prompts": 4}, {"decoding": 2}, {"late": 40}, {"seconds": 0.0}, {"decoding": 0}]
)
def test_steps_that_teach_nothing(change: dict[str, Any]) -> None:
    times = StepTimes(lambda step: 0.01)
    plain = StepRecord(1, 0, 0, 1, 0, 0, 0.01)
    drafted = StepRecord(1, 1, 3, 4, 0, 1, 0.05)
    for _ in range(PAIRS):
        times.take(plain)
        times.take(replace(drafted, **change))
    assert times.ratio(1) == times.ratio(2) == 1.0
    for step in (plain, drafted, plain, replace(drafted, late=40), plain, drafted):
        times.take(step)
    assert times.ratio(1) == pytest.approx(5.0)
    assert times.ratio(1 << 5) == 1.0


def test_pairs_that_do_not_agree_decide_nothing() -> None:
    times = StepTimes(lambda step: 0.01)
    for seconds in (0.008, 0.02, 0.012, 0.009, 0.03):
        times.take(StepRecord(1, 0, 0, 1, 0, 0, 0.01))
        times.take(StepRecord(1, 1, 3, 4, 0, 1, seconds))
    assert times.ratio(1) == 1.0


def test_one_pair_decides_nothing() -> None:
    times = StepTimes(lambda step: 0.01)
    times.take(StepRecord(1, 0, 0, 1, 0, 0, 0.01))
    times.take(StepRecord(1, 1, 3, 4, 0, 1, 0.05))
    assert times.ratio(1) == 1.0


def test_fixed_lengths_never_follow_what_is_learned() -> None:
    policy = auto(tables(), K)
    length = policy.planner.fixed.length(SEEDED)
    assert length > 0
    seeded = Request(50, [7], SEEDED, output_ids=[8])
    course = Course(policy, nothing, slow=3.0, requests=[seeded, *batch().decode])
    course.run(400)
    assert min(course.drafted) == 1  # the seeded one always is
    assert {record.verified for record in seeded.rounds} == {length}
    assert policy.planner.fixed.length(SEEDED) == length


def test_a_fixed_length_that_does_not_pay_is_none() -> None:
    dear = replace(tables().cost, draft=rising([(1, 0.050)]))
    policy = auto(PolicyTables(dear), K)
    assert policy.planner.fixed.length(SEEDED) == 0
    seeded = Request(50, [7], SEEDED, output_ids=[8])
    course = Course(policy, requests=[seeded])
    assert course.run(300) == 0


def test_without_confidences_the_past_stands_in() -> None:
    policy, present = auto(tables(), K), batch()
    block: Any = SimpleNamespace(confidence_RK=None, peaks=False)
    lengths = policy.lengths(policy.decide(present), block)
    assert lengths == plan(causal(tables(), K), present, drafts([0.5] * K))


def test_peaks_are_learned_from() -> None:
    course = Course(auto(tables(), K), sure=0.6, peaks=True)
    course.run(80)
    assert course.policy.acceptance.mean(GREEDY).survival_K[0] > 0.9
    course.accept = nothing
    course.run(600)
    assert course.run(2000) < 0.02


SURE = st.lists(st.floats(0, 1), min_size=K, max_size=K)


@given(st.lists(SURE, min_size=3, max_size=3), st.data())
@settings(max_examples=100)
@pytest.mark.parametrize("peaks", [False, True])
def test_later_confidences_never_decide(peaks: bool, rows: list[list[float]], data: Any) -> None:
    """Whatever was learned before: (r, k) is admitted by c up to k alone."""
    r, k = data.draw(st.integers(0, 2)), data.draw(st.integers(0, K - 1))
    other = [list(row) for row in rows]
    other[r][k + 1 :] = [data.draw(st.floats(0, 1))] * (K - k - 1)
    slow, steps = data.draw(st.sampled_from([0.5, 1.0, 2.0])), data.draw(st.integers(1, 40))
    accepted = data.draw(st.integers(0, K))
    admitted = []
    for present in (rows, other):
        policy, three = auto(tables(row_ms=1.5), K), batch(GREEDY, GREEDY, GREEDY)
        course = Course(policy, lambda _: accepted, slow, requests=three.decode, peaks=peaks)
        course.run(steps)
        block: Any = SimpleNamespace(confidence_RK=np.array(present), peaks=peaks)
        admitted.append(policy.lengths(decided(policy, three), block)[r] > k)
    assert admitted[0] == admitted[1]
