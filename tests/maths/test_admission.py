"""Admission against a literal Algorithm 1, and the property that makes it lossless."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark.maths.admission import (
    best_block,
    capacity,
    causal,
    pipelined,
    ranked,
    throughput,
    worth_drafting,
)
from dspark.tables.cost import envelope

Sure = Any


@st.composite
def batches(draw: Any, requests: int = 5, slots: int = 5) -> tuple[Sure, Sure]:
    """Confidences [R, K] and round times for 0 … R·K draft tokens, of any rising shape."""
    r, k = draw(st.integers(1, requests)), draw(st.integers(1, slots))
    grid = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5, 0.75, 0.9, 1.0])  # ties are likely
    sure = np.array(draw(st.lists(grid, min_size=r * k, max_size=r * k))).reshape(r, k)
    rises = draw(st.lists(st.sampled_from([0, 0, 0.1, 1, 5]), min_size=r * k, max_size=r * k))
    return sure, np.concatenate([[2.0], 2.0 + np.cumsum(rises)])


def survival(sure: Sure) -> Sure:
    return np.cumprod(sure, axis=1)


def literal(survival_RK: Sure, seconds: Sure) -> list[int]:
    """Algorithm 1 word by word."""
    requests, slots = survival_RK.shape
    lengths, tokens, admitted = [0] * requests, float(requests), 0
    best = tokens / seconds[0]
    order = [(-survival_RK[r, k], k, r) for r in range(requests) for k in range(slots)]
    for negative, _, r in sorted(order):
        theta = (tokens - negative) / seconds[admitted + 1]
        if theta <= best:
            break
        lengths[r] += 1
        tokens, admitted, best = tokens - negative, admitted + 1, theta
    return lengths


@given(batches())
def test_causal_is_algorithm_1(batch: Any) -> None:
    sure, seconds = batch
    for times in (seconds, envelope(seconds)):
        assert causal(survival(sure), times) == literal(survival(sure), times)


@given(batches())
def test_order_keeps_slots_of_a_request_in_order(batch: Any) -> None:
    a = survival(batch[0])
    found, request = map(np.array, ranked(a))
    assert (np.diff(found) <= 0).all()
    for r in range(len(a)):
        assert found[request == r].tolist() == a[r].tolist()


@given(batches(), st.data())
@settings(max_examples=300)
def test_later_confidences_never_decide_over_an_earlier_slot(batch: Any, data: Any) -> None:
    """The general property of losslessness, for any cost, convex or not."""
    sure, seconds = batch
    r = data.draw(st.integers(0, sure.shape[0] - 1))
    k = data.draw(st.integers(0, sure.shape[1] - 1))
    other = sure.copy()
    other[r, k + 1 :] = data.draw(st.floats(0, 1))
    count = data.draw(st.integers(0, sure.size))
    for rule in (lambda a: causal(a, seconds), lambda a: pipelined(a, count)):
        assert (rule(survival(sure))[r] > k) == (rule(survival(other))[r] > k)


def test_a_rule_that_looks_past_a_dip_breaks_the_property() -> None:
    """Appendix A's numbers: the control that shows the test above can fail."""
    seconds = [1.0, 1 / 0.5, 1 / 0.45]
    after_a, after_b = survival(np.array([[0.8, 0.9]])), survival(np.array([[0.8, 0.0]]))
    theta = throughput(ranked(after_a)[0], 1, seconds)
    assert theta == pytest.approx([1, 0.9, 1.134])
    retrospective = [pipelined(a, capacity(a, seconds)) for a in (after_a, after_b)]
    assert retrospective == [[2], [0]]  # whether x_1 is verified hangs on x_1
    assert [causal(a, seconds) for a in (after_a, after_b)] == [[0], [0]]


@given(batches())
def test_capacity_is_the_best_of_all(batch: Any) -> None:
    sure, seconds = batch
    a = survival(sure)
    theta = throughput(ranked(a)[0], len(a), seconds)
    assert theta[capacity(a, seconds)] == max(theta)
    assert sum(pipelined(a, capacity(a, seconds))) == capacity(a, seconds)


@given(batches())
def test_on_the_envelope_causal_finds_the_peak(batch: Any) -> None:
    sure, seconds = batch
    a, convex = survival(sure), envelope(seconds)
    theta = throughput(ranked(a)[0], len(a), convex)
    found = theta[sum(causal(a, convex))]
    assert found == pytest.approx(max(theta), rel=1e-9)


def test_only_requests_that_pay_are_drafted() -> None:
    verify = 10.0 + np.arange(20)
    good, fair, bad = [0.9, 0.6], [0.7, 0.5], [0.01, 0.0]
    worth = lambda rows, draft: worth_drafting(rows, [[(2, s)] for s in draft], verify)  # noqa: E731
    assert worth([good, bad, fair], [0, 1, 1.1, 2.2]) == [True, False, True]
    assert worth([bad, bad, bad], [0, 1, 1.1, 1.2]) == [False] * 3
    assert worth([good, fair, good], [0, 1, 1.1, 1.2]) == [True] * 3
    assert worth([good, fair, good], [0, 99, 99.1, 99.2]) == [False] * 3  # drafting is too dear
    short = [[(1, requests * 0.2), (2, 99.0)] for requests in range(4)]
    assert worth_drafting([good, fair, good], short, verify) == [True] * 3  # one slot is not


@given(batches(), st.lists(st.floats(0, 3), min_size=5, max_size=5), st.floats(0, 9))
def test_the_best_block_against_every_other(batch: Any, rises: list[float], more: float) -> None:
    """Of all slots with all counts of draft tokens, and the fewest slots that reach it."""
    sure, verify = batch
    a, committed = survival(sure), len(sure) + more
    draft = list(zip(range(1, a.shape[1] + 1), np.cumsum(rises).tolist(), strict=False))
    thetas = {
        (slots, count): (committed + np.sort(a[:, :slots].ravel())[::-1][:count].sum())
        / (draft[slots - 1][1] + verify[count])
        for slots, _ in draft
        for count in range(len(sure) * slots + 1)
    }
    best = best_block(a, draft, verify, committed)
    assert best.theta == pytest.approx(max(thetas.values()))
    assert best.theta == pytest.approx(thetas[best.slots, best.count])
    fewer = [theta for (slots, _), theta in thetas.items() if slots < best.slots]
    assert all(theta < best.theta + 1e-12 for theta in fewer)


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=9),
    st.floats(0.01, 5),
    st.floats(0, 3),
)
def test_the_drafted_set_is_the_best_of_its_kind(
    sure: list[list[float]], first: float, each: float
) -> None:
    """Against numbers that double and the whole, each with every count of draft tokens."""
    survival = np.cumprod(np.array(sure), 1)
    count = len(survival)
    draft = [0.0] + [first + each * i for i in range(count)]
    verify = 5.0 + np.arange(3 * count + 1)

    def rate(chosen: Any) -> float:
        best = np.sort(survival[chosen].ravel())[::-1]
        number = len(survival[chosen])
        return max(
            (count + best[:k].sum()) / (draft[number] + verify[k]) for k in range(len(best) + 1)
        )

    order = np.argsort(-survival.sum(1), kind="stable")
    numbers = {0, 1, 2, 4, 8, count} & set(range(count + 1))
    mine = rate(worth_drafting(survival, [[(3, seconds)] for seconds in draft], verify))
    assert mine == pytest.approx(max(rate(order[:number]) for number in numbers))


def test_requests_compete_for_the_same_rows() -> None:
    a = np.array([[0.9, 0.8, 0.7], [0.5, 0.1, 0.0]])
    assert pipelined(a, 4) == [3, 1]
    free = np.full(7, 1.0)
    assert causal(a, free) == [3, 2]  # a slot that never survives is worth nothing
    dear = 1.0 + np.arange(7) * 0.4
    assert causal(a, dear) == [1, 0]
