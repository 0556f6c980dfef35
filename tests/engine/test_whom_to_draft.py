"""Whom the adaptive policies draft: by past rounds and cost alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dspark.core import Batch, SamplingParams
from dspark.engine import draft_gate
from dspark.engine.acceptance import MEMORY, PRIOR
from dspark.engine.draft_gate import HOLD, PROBE_EVERY
from dspark.engine.policies import PolicyTables
from dspark.engine.policy_names import causal, pipelined
from dspark.engine.survival import UNKNOWN_ACCEPTANCE
from dspark.tables.calibration import CalibrationEntry, CalibrationTable
from dspark.tables.cost import CostTable, rising
from made_up import GREEDY, KEY, SEEDED, K, batch, decided, record, tables


def wanted(policy: Any, batch: Batch) -> list[bool]:
    return list(policy.gate.choose(batch).wanted_R)


@pytest.mark.parametrize("kind", [causal, pipelined])
def test_hopeless_requests_are_not_drafted_but_probed(kind: Any) -> None:
    policy = kind(tables(row_ms=1), K)
    present = batch(GREEDY, GREEDY, GREEDY, SEEDED)
    young, good, bad, seeded = present.decode
    good.rounds = [record(K, 3, 3)] * 20
    bad.rounds = [record(K, 3, 0)] * 60
    seeded.rounds = [record(K, 3, 0)] * 20
    assert wanted(policy, present) == [True, True, False, True]
    for _ in range(PROBE_EVERY - 2):
        bad.rounds = [*bad.rounds, record(0, 0, 0)]
        assert wanted(policy, present)[2] is False
    assert wanted(policy, present)[2] is True  # a probe, of all in the same step
    assert wanted(policy, present)[2] is False
    bad.rounds = bad.rounds + [record(K, 3, 3)] * MEMORY
    for _ in range(HOLD - 1):
        assert wanted(policy, present)[2] is False  # the last choice stands
    assert wanted(policy, present)[2] is True  # it came back
    assert young.rounds == []


@pytest.mark.parametrize("kind", [causal, pipelined])
def test_nothing_is_probed_where_no_draft_could_pay(kind: Any) -> None:
    """Each row costs as much as the first: even a draft that always holds brings nothing."""
    policy = kind(tables(row_ms=10), K)
    present = batch(GREEDY, GREEDY)
    asked = [wanted(policy, present) for _ in range(2 * PROBE_EVERY)]
    assert not any(map(any, asked))
    assert wanted(policy, batch(GREEDY, GREEDY, SEEDED)) == [False, False, True]  # a length is kept


@pytest.mark.parametrize("kind", [causal, pipelined])
@pytest.mark.parametrize(("spare_ms", "slots"), [(0.05, 3), (0.5, 2)])
def test_a_spare_slot_is_drafted_where_it_costs_next_to_nothing(
    kind: Any, spare_ms: float, slots: int
) -> None:
    """Two slots pay for each of two requests."""
    entry = CalibrationEntry(0.0, 1.0, 0, (1.0,) * K, (0.9, 0.8, 0.05, 0.01))
    calibration = CalibrationTable("d", "dspark", K, "t", (entry,))
    short = tuple((n, rising([(1, 0.002 + (n - 2) * spare_ms / 1000)])) for n in (2, 3))
    cost = replace(tables().cost, block=K, short=((1, rising([(1, 0.002)])), *short))
    cost = replace(cost, draft=rising([(1, 0.004)]))
    policy = kind(PolicyTables(cost, calibration), K)
    assert decided(policy, batch(GREEDY, GREEDY)).slots == slots


def test_drafts_must_pay_by_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    pays = lambda: wanted(causal(tables(), K), batch()) == [True]  # noqa: E731
    mean_K = [UNKNOWN_ACCEPTANCE ** (k + 1) for k in range(K)]
    rates = [(1 + sum(mean_K[:k])) / (0.012 + 0.001 * k) for k in range(1, K + 1)]
    gain = max(rates) * 0.010 - 1
    monkeypatch.setattr(draft_gate, "MARGIN", gain - 0.001)
    assert pays()
    monkeypatch.setattr(draft_gate, "MARGIN", gain + 0.001)
    assert not pays()


@pytest.mark.parametrize("kind", [causal, pipelined])
def test_a_choice_stands_for_the_same_requests_only(kind: Any) -> None:
    policy, requests = kind(tables(), K), batch(GREEDY, GREEDY).decode
    first, second = requests
    assert wanted(policy, Batch([], [first])) == [True]
    first.rounds = [record(K, K, 0)] * 60
    assert wanted(policy, Batch([], [first])) == [True]  # it stands
    assert wanted(policy, Batch([], [first, second])) == [False, False]  # for one it does not pay
    assert wanted(policy, Batch([], [second])) == [True]
    assert wanted(policy, Batch([], [first])) == [False]


def test_the_past_scales_what_is_expected() -> None:
    """A few rounds move it a little, many move it to what they showed."""
    policy, present = causal(tables(), K), batch(GREEDY)
    [request] = present.decode
    promised = UNKNOWN_ACCEPTANCE + UNKNOWN_ACCEPTANCE**2
    expected = lambda: policy.acceptance.expected(present.decode)[0][0] / UNKNOWN_ACCEPTANCE  # noqa: E731
    assert expected() == 1
    request.rounds = [record(K, 2, 0)]
    assert expected() == pytest.approx(PRIOR / (promised + PRIOR))
    request.rounds = [*request.rounds, record(K, 0, 0), record(0, 0, 0)]  # they tell nothing
    assert expected() == pytest.approx(PRIOR / (promised + PRIOR))
    request.rounds = request.rounds + [record(K, 2, 2)] * 100
    assert expected() > 1.5
    [expected_K] = policy.acceptance.expected(batch(SamplingParams(max_new_tokens=9)).decode)
    assert len(expected_K) == K


def test_a_draft_that_costs_too_much_is_not_made() -> None:
    dear = CostTable(KEY, rising([(1, 0.010), (101, 0.020)]), rising([(1, 0.5)]), 64)
    assert wanted(causal(PolicyTables(dear), K), batch()) == [False]
