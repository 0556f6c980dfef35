"""Losslessness: exact on a small vocabulary, statistical on a larger one, with positive controls.

A control breaks the rule on purpose, and the same measurement must then see the bias.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark.core import Verdict
from dspark.maths.rng import Use, uniform
from dspark.maths.sampling import draw, probabilities
from dspark.maths.verification import overlap, verify, verify_greedy

torch.set_num_threads(1)


def doubles(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


# --- Exact: every draft, and every cell of a grid of random numbers ---
# In these tables (V = 4) acceptance ratios below one and normalised residuals are multiples of
# 1/8, so the eight midpoints of [0, 1) stand for all values of u without error.

GRID = (np.arange(8) + 0.5) / 8
FULL = {  # p_d, p_t
    "d2t": None,
    "draft": np.array([[4, 2, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2], [8, 0, 0, 0], [1, 2, 4, 1]]) / 8,
    "target": np.array([[2, 2, 2, 2], [1, 1, 2, 4], [0, 4, 4, 0], [4, 2, 2, 0], [1, 2, 4, 1]]) / 8,
}
REDUCED = {  # the drafter knows tokens 2, 0 and 3 only
    "d2t": torch.tensor([2, 0, 3]),
    "draft": np.array([[4, 2, 2], [4, 2, 2], [4, 2, 2]]) / 8,
    "target": np.array([[2, 2, 2, 2], [1, 2, 4, 1], [0, 4, 4, 0]]) / 8,
}
SLOTS, V = 2, 4


def context(prefix, world) -> int:
    """Which pair of distributions follows `prefix`: later ones depend on earlier tokens."""
    return (sum((place + 2) * token for place, token in enumerate(prefix))) % len(world["target"])


def true_law(world) -> np.ndarray:
    """Joint distribution of three tokens under plain decoding, shape [V, V, V]."""
    law = np.ones((V,) * (SLOTS + 1))
    for tokens in np.ndindex(*law.shape):
        for k, token in enumerate(tokens):
            law[tokens] *= world["target"][context(tokens[:k], world), token]
    return law


def every_case(world):
    """All drafts with their probability, crossed with the grid of accept and final numbers."""
    ids = range(V) if world["d2t"] is None else world["d2t"].tolist()
    weights, drafts, numbers, draft_rows, target_rows = [], [], [], [], []
    for columns in itertools.product(range(len(ids)), repeat=SLOTS):
        tokens = tuple(ids[column] for column in columns)
        contexts = [context(tokens[:k], world) for k in range(SLOTS + 1)]
        chance = math.prod(world["draft"][contexts[k], columns[k]] for k in range(SLOTS))
        for u in itertools.product(GRID, repeat=SLOTS + 1) if chance else ():
            weights.append(chance / len(GRID) ** (SLOTS + 1))
            drafts.append(tokens)
            numbers.append(u)
            draft_rows.append(contexts[:SLOTS])
            target_rows.append(contexts)
    draft_probs = torch.tensor(world["draft"], dtype=torch.float32)[draft_rows]
    target_probs = torch.tensor(world["target"], dtype=torch.float32)[target_rows]
    return weights, torch.tensor(drafts), np.array(numbers), draft_probs, target_probs


def output_law(world, length_of, judge=verify) -> np.ndarray:
    """Joint distribution of the first three tokens when one round precedes plain decoding."""
    weights, drafts, numbers, draft_probs, target_probs = every_case(world)
    lengths = [length_of(tokens) for tokens in drafts.tolist()]
    u_accept, u_final = numbers[:, :SLOTS], numbers[:, SLOTS]
    verdict = judge(target_probs, draft_probs, drafts, lengths, u_accept, u_final, world["d2t"])
    committed: Counter = Counter()
    for tokens, kept, last, weight in zip(
        drafts.tolist(), verdict.accepted, verdict.next_id, weights, strict=True
    ):
        committed[(*tokens[:kept], last)] += weight
    law = np.zeros((V,) * (SLOTS + 1))
    for tokens, weight in committed.items():
        rest = true_law(world)[tokens]
        law[tokens] += weight * rest / rest.sum()
    return law


LAWFUL = {
    "plain": lambda tokens: 0,
    "one": lambda tokens: 1,
    "all": lambda tokens: 2,
    "causal": lambda tokens: 1 if tokens[0] in (0, 3) else 2,  # looks at x_1 to decide on x_2
}


@pytest.mark.parametrize("world", [FULL, REDUCED], ids=["full", "reduced"])
@pytest.mark.parametrize("length", LAWFUL)
def test_the_output_distribution_is_exactly_the_targets(world, length):
    if length == "plain":
        assert true_law(world).sum() == pytest.approx(1)
    assert np.abs(output_law(world, LAWFUL[length]) - true_law(world)).max() < 1e-12


def accept_always(target, draft, ids, lengths, u_accept, u_final, d2t):
    return verify(target, draft, ids, lengths, np.zeros_like(u_accept), u_final, d2t)


def correct_from_target(target, draft, ids, lengths, u_accept, u_final, d2t):
    verdict = verify(target, draft, ids, lengths, u_accept, u_final, d2t)
    rows = target[torch.arange(len(ids)), torch.tensor(verdict.accepted)]
    return Verdict(verdict.accepted, draw(rows, u_final).tolist())


def wrong_temperature(target, draft, ids, lengths, u_accept, u_final, d2t):
    colder = draft**2
    colder /= colder.sum(-1, keepdim=True)
    return verify(target, colder, ids, lengths, u_accept, u_final, d2t)


CONTROLS = [accept_always, correct_from_target, wrong_temperature]


@pytest.mark.parametrize("world", [FULL, REDUCED], ids=["full", "reduced"])
@pytest.mark.parametrize("control", CONTROLS)
def test_control_a_broken_rule_shows_in_the_exact_law(world, control):
    law = output_law(world, LAWFUL["all"], control)
    assert law.sum() == pytest.approx(1)
    assert np.abs(law - true_law(world)).sum() > 0.01


def test_control_a_length_that_looks_at_its_own_token_shows_in_the_exact_law() -> None:
    law = output_law(FULL, lambda tokens: 2 if tokens[0] in (0, 3) else 0)
    assert np.abs(law - true_law(FULL)).sum() > 0.01


@pytest.mark.parametrize(("length_of_b", "share_of_a"), [(0, 0.85), (1, 0.7)])
def test_the_papers_example_of_a_retrospective_length(length_of_b, share_of_a):
    """DSpark Appendix A: p_t = (.7, .3), p_d = (.5, .5), x_1 = A verified, x_1 = B only maybe."""
    grid = (np.arange(10) + 0.5) / 10
    ids, accept, final = map(np.ravel, np.meshgrid([0, 1], grid, grid, indexing="ij"))
    R = len(ids)
    target = torch.tensor([0.7, 0.3]).expand(R, 2, 2)
    draft = torch.full((R, 1, 2), 0.5)
    lengths = np.where(ids == 0, 1, length_of_b)
    draft_ids = torch.tensor(ids)[:, None]
    verdict = verify(target, draft, draft_ids, lengths, accept[:, None], final)
    first = np.where(np.array(verdict.accepted) == 1, ids, verdict.next_id)
    assert np.mean(first == 0) == pytest.approx(share_of_a)


# --- Statistical: a larger vocabulary, numbers from the request's own generator ---
# Power: 8,000 requests give p-values below 1e-32 for every broken rule, whatever the seed; 40,000
# are held against the right one.


def chi2_p(tokens: np.ndarray, law: np.ndarray) -> float:
    observed = np.bincount(tokens, minlength=law.size)
    expected = law / law.sum() * len(tokens)
    statistic = ((observed - expected) ** 2 / expected).sum()
    half = doubles([(law.size - 1) / 2, statistic / 2])
    return float(torch.special.gammaincc(half[0], half[1]))


def simulate(judge, lengths=None, d2t=None, count=40_000, seed=1) -> float:
    """p-value of the first two tokens of `count` requests against the target's distribution."""
    size, slots = 9, 3
    generator = torch.Generator().manual_seed(seed)
    target = torch.softmax(torch.randn(slots + 1, size, generator=generator), -1)
    width = size if d2t is None else len(d2t)
    draft = torch.softmax(torch.randn(slots, width, generator=generator), -1)

    def numbers(slot, use, round=0):
        key = {"seed": seed, "request": requests, "sample": 0, "round": round}
        return uniform(**key, slot=slot, use=use)

    requests = np.arange(count)
    columns = torch.stack(
        [draw(draft[k].expand(count, -1), numbers(k, Use.DRAFT)) for k in range(slots)], dim=1
    )
    ids = columns if d2t is None else d2t[columns]
    lengths = np.full(count, slots) if lengths is None else lengths(requests, ids.numpy())
    accept_u = np.stack([numbers(k, Use.ACCEPT) for k in range(slots)], axis=1)
    final_u = numbers(0, Use.RESIDUAL)
    rows = (target.expand(count, -1, -1), draft.expand(count, -1, -1), ids, lengths)
    verdict = judge(*rows, accept_u, final_u, d2t)

    accepted, last = np.array(verdict.accepted), np.array(verdict.next_id)
    later = draw(target[1].expand(count, -1), numbers(0, Use.RESIDUAL, round=1)).numpy()
    first = np.where(accepted >= 1, ids[:, 0], last)
    second = np.where(accepted >= 2, ids[:, 1], np.where(accepted == 1, last, later))
    law = (target[0].double()[:, None] * target[1].double()[None, :]).numpy()
    return chi2_p(first * size + second, law.ravel())


@pytest.mark.parametrize("d2t", [None, torch.tensor([7, 0, 3, 8, 1])], ids=["full", "reduced"])
def test_two_tokens_follow_the_target(d2t):
    assert simulate(verify, d2t=d2t) > 1e-4


def test_two_tokens_follow_the_target_under_ragged_truncation() -> None:
    assert simulate(verify, lambda requests, ids: requests % 4) > 1e-4
    assert simulate(verify, lambda requests, ids: np.where(ids[:, 0] < 4, 1, 3)) > 1e-4


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("d2t", [None, torch.tensor([7, 0, 3, 8, 1])], ids=["full", "reduced"])
def test_control_a_broken_rule_fails_the_chi_square(control, d2t):
    assert simulate(control, d2t=d2t, count=8_000) < 1e-10


def test_control_a_length_that_looks_at_its_own_token_fails_the_chi_square() -> None:
    looking = lambda requests, ids: np.where(ids[:, 0] < 4, 0, 3)  # noqa: E731
    assert simulate(verify, looking, count=8_000) < 1e-10


# --- The rule, case by case ---


def test_equal_distributions_accept_everything_and_end_with_the_bonus() -> None:
    probs = torch.softmax(torch.randn(5, 4, 11, generator=torch.Generator().manual_seed(0)), -1)
    probs[:, 3] = torch.eye(11)[[4, 5, 6, 7, 8]]
    ids = torch.randint(0, 11, (5, 3), generator=torch.Generator().manual_seed(1))
    u = np.full((5, 3), 1 - 2**-53)
    verdict = verify(probs, probs[:, :3], ids, [3] * 5, u, np.full(5, 0.5))
    assert verdict == Verdict([3] * 5, [4, 5, 6, 7, 8])


def test_disjoint_distributions_accept_nothing_even_at_zero() -> None:
    target = torch.tensor([0.0, 0.0, 1.0]).expand(2, 3, 3)
    draft = torch.tensor([0.5, 0.5, 0.0]).expand(2, 2, 3)
    ids = torch.tensor([[0, 1], [1, 0]])
    verdict = verify(target, draft, ids, [2, 2], np.zeros((2, 2)), np.array([0.0, 0.999]))
    assert verdict == Verdict([0, 0], [2, 2])


def test_acceptance_is_strict_and_a_later_pass_does_not_count() -> None:
    target = torch.tensor([0.25, 0.75]).expand(2, 4, 2)
    draft = torch.tensor([0.5, 0.5]).expand(2, 3, 2)
    u = np.array([[0.49, 0.5, 0.0], [0.49, 0.49, 0.49]])  # p_t / p_d is one half
    verdict = verify(
        target, draft, torch.zeros(2, 3, dtype=torch.int64), [3, 3], u, np.full(2, 0.1)
    )
    assert verdict == Verdict([1, 3], [1, 0])


def test_plain_decoding_with_and_without_slots() -> None:
    target = torch.softmax(torch.randn(6, 4, 20, generator=torch.Generator().manual_seed(3)), -1)
    u = np.linspace(0, 0.99, 6)
    expected = Verdict([0] * 6, draw(target[:, 0], u).tolist())
    ids, draft = torch.zeros(6, 3, dtype=torch.int64), torch.full((6, 3, 20), 0.05)
    assert verify(target, draft, ids, [0] * 6, np.zeros((6, 3)), u) == expected
    assert verify(target[:, :1], draft[:, :0], ids[:, :0], [0] * 6, np.zeros((6, 0)), u) == expected
    best = target.argmax(-1)
    greedy = Verdict([0] * 6, best[:, 0].tolist())
    assert verify_greedy(best, ids, [0] * 6) == greedy
    assert verify_greedy(best[:, :1], ids[:, :0], [0] * 6) == greedy


def test_a_residual_without_mass_falls_back_to_the_target() -> None:
    """Only inconsistent rounding can get here: nothing is above p_d, yet u * p_d >= p_t."""
    target = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    draft = torch.tensor([[[0.5000001, 0.5]]])
    u, final_u = np.array([[1 - 2**-53]]), np.array([0.75])
    for d2t in (None, torch.tensor([0, 1])):
        verdict = verify(target, draft, torch.tensor([[0]]), [1], u, final_u, d2t)
        assert verdict == Verdict([0], [1])


def test_the_drafters_probability_is_zero_outside_its_vocabulary() -> None:
    target = torch.tensor([[[0.1, 0.9], [1.0, 0.0]]])
    draft, d2t = torch.ones(1, 1, 1), torch.tensor([1])
    u, final_u = np.array([[0.95]]), np.array([0.5])
    assert verify(target, draft, torch.tensor([[1]]), [1], u, final_u, d2t) == Verdict([0], [0])
    assert verify(target, draft, torch.tensor([[0]]), [1], u, final_u, d2t) == Verdict([1], [0])


@pytest.mark.parametrize("d2t", [None, torch.tensor([5, 2, 4, 1])])
def test_slots_past_the_verify_length_are_never_looked_at(d2t):
    width = 6 if d2t is None else 4
    target = torch.softmax(torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(4)), -1)
    draft = torch.softmax(torch.randn(3, 3, width, generator=torch.Generator().manual_seed(5)), -1)
    ids = torch.tensor([[2, 4, 1], [1, 1, 5], [4, 2, 5]])
    accept_u, final_u = np.full((3, 3), 0.4), np.array([0.1, 0.6, 0.9])
    lengths = [0, 1, 2]
    clean = verify(target, draft, ids, lengths, accept_u, final_u, d2t)
    for row, length in enumerate(lengths):
        target[row, length + 1 :], draft[row, length:] = math.nan, math.nan
        ids[row, length:], accept_u[row, length:] = -1, math.nan
    assert verify(target, draft, ids, lengths, accept_u, final_u, d2t) == clean


def test_inputs_stay_as_they_were() -> None:
    target = torch.softmax(torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(6)), -1)
    draft = torch.softmax(torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(7)), -1)
    copies = target.clone(), draft.clone()
    verify(target, draft, torch.zeros(4, 2).long(), [2] * 4, np.full((4, 2), 0.9), np.zeros(4))
    assert torch.equal(target, copies[0])
    assert torch.equal(draft, copies[1])


def test_greedy_is_the_limit_of_the_stochastic_rule() -> None:
    generator = torch.Generator().manual_seed(8)
    R, K, size = 200, 5, 3
    target_logits = torch.randn(R, K + 1, size, generator=generator)
    draft_logits = target_logits[:, :K] + 0.5 * torch.randn(R, K, size, generator=generator)
    flat = [x.reshape(-1, size) for x in (target_logits, draft_logits)]
    target, draft = (probabilities(x, 0.0, 0, 1.0).view(R, -1, size) for x in flat)
    ids, lengths = draft_logits.argmax(-1), [r % (K + 1) for r in range(R)]
    u = np.random.default_rng(0).random((R, K + 1))
    greedy = verify_greedy(target_logits.argmax(-1), ids, lengths)
    assert verify(target, draft, ids, lengths, u[:, :K], u[:, K]) == greedy
    assert {0, K} <= set(greedy.accepted)


# --- Any input: against a loop that follows the text of the rule ---


def judge_one(target, draft_full, ids, length, accept_u, final_u):
    """One request, one slot at a time; distributions as float32 numpy rows over V."""
    for k in range(length):
        p_t, p_d = float(target[k][ids[k]]), float(draft_full[k][ids[k]])
        if not accept_u[k] * p_d < p_t:
            left = np.maximum(target[k] - draft_full[k], 0)
            return k, left if left.any() else target[k]
    return length, target[length]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    R=st.integers(1, 5),
    K=st.integers(0, 5),
    size=st.integers(1, 12),
    reduced=st.booleans(),
    close=st.booleans(),
)
def test_any_input_matches_the_loop(seed, R, K, size, reduced, close):
    rng = np.random.default_rng(seed)

    def random_probs(*shape):
        weights = rng.random(shape) * (rng.random(shape) < 0.7)
        weights[..., rng.integers(shape[-1])] += 0.1
        return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)

    target = random_probs(R, K + 1, size)
    width = int(rng.integers(1, size + 1)) if reduced else size
    d2t = rng.permutation(size)[:width] if reduced else np.arange(size)
    draft = random_probs(R, K, width)
    if close and not reduced:
        draft = 0.9 * target[:, :K] + np.float32(0.1) * draft
    draft_full = np.zeros((R, K, size), dtype=np.float32)
    draft_full[..., d2t] = draft
    u_draft, accept_u, final_u = rng.random((R * K,)), rng.random((R, K)), rng.random(R)
    columns = (
        draw(torch.tensor(draft).reshape(R * K, width), u_draft) if K else torch.zeros(0).long()
    )
    ids = d2t[columns.numpy()].reshape(R, K)
    lengths = rng.integers(0, K + 1, R)

    verdict = verify(
        torch.tensor(target),
        torch.tensor(draft),
        torch.tensor(ids),
        lengths,
        accept_u,
        final_u,
        torch.tensor(d2t) if reduced else None,
    )
    for r in range(R):
        kept, weights = judge_one(
            target[r], draft_full[r], ids[r], lengths[r], accept_u[r], final_u[r]
        )
        ends = weights.astype(float).cumsum()
        assert verdict.accepted[r] == kept <= lengths[r]
        assert verdict.next_id[r] == bisect_right(ends.tolist(), final_u[r] * ends[-1])
        assert target[r, kept, verdict.next_id[r]] > 0


def test_overlap_is_the_probability_of_acceptance() -> None:
    target = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]])
    draft = torch.tensor([[[0.2, 0.5, 0.3], [0.8, 0.1, 0.1]]])
    torch.testing.assert_close(overlap(target, draft, None), torch.tensor([[0.7, 0.3]]))
    d2t = torch.tensor([0, 2])
    reduced = torch.tensor([[[0.6, 0.4], [0.5, 0.5]]])
    torch.testing.assert_close(overlap(target, reduced, d2t), torch.tensor([[0.7, 0.6]]))
