"""Block verification case by case, and against a loop that follows the text of the rule."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark.core import Verdict
from dspark.maths.block_verification import (
    block_overlap,
    block_survival,
    prefix_probability,
    verify_block,
)
from dspark.maths.sampling import draw, probabilities
from dspark.maths.verification import overlap, verify, verify_greedy

torch.set_num_threads(1)

NEVER = 1 - 2**-53


def some_distribution(rng: np.random.Generator, size: int) -> np.ndarray:
    """Often with tokens of probability zero."""
    weights = rng.random(size) ** 2 * (rng.random(size) < 0.9)
    weights[rng.integers(size)] += 0.1
    return weights / weights.sum()


def tensors(seed: int, reduced: bool) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    target = torch.tensor(np.stack([some_distribution(rng, 6) for _ in range(20)])).view(5, 4, 6)
    width = 4 if reduced else 6
    draft = torch.tensor(np.stack([some_distribution(rng, width) for _ in range(20)]))
    draft = draft.view(5, 4, width)
    d2t = torch.tensor([5, 2, 4, 1]) if reduced else torch.arange(6)
    ids = d2t[torch.multinomial(draft.view(20, width), 1)].view(5, 4)
    return target, draft, ids, d2t


@pytest.mark.parametrize("reduced", [False, True])
def test_what_a_prefix_is_expected_to_do_is_the_mean_over_its_last_token(reduced: bool) -> None:
    target, draft, ids, d2t = tensors(0, reduced)
    given = None if not reduced else d2t
    survival = block_survival(target, draft, ids, given)
    conditional = block_overlap(target, draft, ids, given)
    kept = prefix_probability(target, draft, ids, given)
    for r, k in np.ndindex(5, 4):
        mean = 0.0
        for column, token in enumerate(d2t.tolist()):
            other = ids.clone()
            other[r, k] = token
            chance = float(draft[r, k, column])
            if chance:
                mean += chance * float(prefix_probability(target, draft, other, given)[r, k + 1])
        assert float(survival[r, k]) == pytest.approx(mean, abs=1e-12)
        before = float(kept[r, k])
        if before:
            assert float(conditional[r, k]) * before == pytest.approx(mean, abs=1e-12)
        else:
            alone = overlap(target[r : r + 1], draft[r : r + 1], given)[0, k]
            assert float(conditional[r, k]) == pytest.approx(float(alone), abs=1e-12)


# --- Any input: against a loop that follows the text of the rule ---


def judge_one(
    target: np.ndarray, draft: np.ndarray, ids: Any, length: int, u: Any
) -> tuple[int, np.ndarray]:
    """One request; distributions as rows over V. Accepted tokens, and weights of the next one."""
    kept = [1.0]
    for k in range(length):
        p, q = float(target[k][ids[k]]), float(draft[k][ids[k]])
        ratio = p / q if q else (1e300 if p else 0.0)
        kept.append(min(1.0, kept[-1] * ratio))
    accepted = 0
    for i in range(1, length + 1):
        h = kept[i]
        if i < length:
            left = float(np.maximum(kept[i] * target[i] - draft[i], 0).sum())
            gone = 1 - kept[i]
            h = left / (left + gone) if left + gone else 1.0
        if u[i - 1] < h:
            accepted = i
    if accepted == length:
        return accepted, target[length]
    left = np.maximum(kept[accepted] * target[accepted] - draft[accepted], 0)
    return accepted, left if left.any() else target[accepted]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    R=st.integers(1, 5),
    slots=st.integers(0, 5),
    size=st.integers(1, 12),
    reduced=st.booleans(),
    close=st.booleans(),
)
def test_any_input_matches_the_loop(
    seed: int, R: int, slots: int, size: int, reduced: bool, close: bool
) -> None:
    rng = np.random.default_rng(seed)

    def random_probs(*shape: int) -> np.ndarray:
        rows = math.prod(shape[:-1])
        found = [some_distribution(rng, shape[-1]) for _ in range(rows)]
        return np.array(found).reshape(shape)

    target = random_probs(R, slots + 1, size)
    width = int(rng.integers(1, size + 1)) if reduced else size
    d2t = rng.permutation(size)[:width] if reduced else np.arange(size)
    draft = random_probs(R, slots, width)
    if close and not reduced:
        draft = 0.9 * target[:, :slots] + 0.1 * draft
    wide = np.zeros((R, slots, size))
    wide[..., d2t] = draft
    u, final = rng.random((R, slots)), rng.random(R)
    columns = np.zeros((R, slots), dtype=int)
    for r, k in np.ndindex(R, slots):
        columns[r, k] = rng.choice(width, p=draft[r, k])
    ids = d2t[columns].reshape(R, slots)
    lengths = rng.integers(0, slots + 1, R)
    given = torch.tensor(d2t) if reduced else None
    verdict = verify_block(
        torch.tensor(target), torch.tensor(draft), torch.tensor(ids), lengths, u, final, given
    )
    for r in range(R):
        accepted, weights = judge_one(target[r], wide[r], ids[r], int(lengths[r]), u[r])
        ends = weights.cumsum()
        assert verdict.accepted[r] == accepted
        assert verdict.next_id[r] == bisect_right(ends.tolist(), final[r] * ends[-1])
        assert target[r, accepted, verdict.next_id[r]] > 0


# --- The rule, case by case ---


def test_one_slot_is_the_token_rule() -> None:
    target, draft, ids, _ = tensors(3, False)
    rng = np.random.default_rng(0)
    for _ in range(50):
        u, final = rng.random((5, 4)), rng.random(5)
        lengths = [0, 1, 1, 1, 1]
        given = (target, draft[:, :3], ids[:, :3], lengths, u[:, :3], final)
        assert verify_block(*given) == verify(*given)


def test_equal_distributions_accept_everything_and_end_with_the_bonus() -> None:
    probs = torch.softmax(torch.randn(5, 4, 11, generator=torch.Generator().manual_seed(0)), -1)
    probs[:, 3] = torch.eye(11)[[4, 5, 6, 7, 8]]
    ids = torch.randint(0, 11, (5, 3), generator=torch.Generator().manual_seed(1))
    u = np.full((5, 3), NEVER)
    verdict = verify_block(probs, probs[:, :3], ids, [3] * 5, u, np.full(5, 0.5))
    assert verdict == Verdict([3] * 5, [4, 5, 6, 7, 8])


def test_a_likely_token_makes_good_for_an_unlikely_one() -> None:
    """p = ½, then 1: the draft stands whole although its first token alone would have failed."""
    target = torch.tensor([[[0.25, 0.75], [0.9, 0.1], [0.0, 1.0]]])
    draft = torch.tensor([[[0.5, 0.5], [0.45, 0.55]]])
    given = (target, draft, torch.tensor([[0, 0]]), [2], np.array([[0.9, 0.9]]), np.array([0.5]))
    assert verify(*given).accepted == [0]
    assert verify_block(*given) == Verdict([2], [1])


def test_disjoint_distributions_accept_nothing_even_at_zero() -> None:
    target = torch.tensor([0.0, 0.0, 1.0]).expand(2, 3, 3)
    draft = torch.tensor([0.5, 0.5, 0.0]).expand(2, 2, 3)
    ids = torch.tensor([[0, 1], [1, 0]])
    verdict = verify_block(target, draft, ids, [2, 2], np.zeros((2, 2)), np.array([0.0, 0.999]))
    assert verdict == Verdict([0, 0], [2, 2])


def test_greedy_rows_among_others_are_judged_greedily() -> None:
    generator = torch.Generator().manual_seed(8)
    R, slots, size = 200, 5, 3
    target_logits = torch.randn(R, slots + 1, size, generator=generator)
    draft_logits = target_logits[:, :slots] + 0.5 * torch.randn(R, slots, size, generator=generator)
    flat = [x.reshape(-1, size) for x in (target_logits, draft_logits)]
    target, draft = (probabilities(x, 0.0, 0, 1.0).view(R, -1, size) for x in flat)
    ids, lengths = draft_logits.argmax(-1), [r % (slots + 1) for r in range(R)]
    u = np.random.default_rng(0).random((R, slots + 1))
    greedy = verify_greedy(target_logits.argmax(-1), ids, lengths)
    assert verify_block(target, draft, ids, lengths, u[:, :slots], u[:, slots]) == greedy
    assert {0, slots} <= set(greedy.accepted)


@pytest.mark.parametrize("d2t", [None, torch.tensor([5, 2, 4, 1])])
def test_slots_past_the_verify_length_are_never_looked_at(d2t: torch.Tensor | None) -> None:
    width = 6 if d2t is None else 4
    target = torch.softmax(torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(4)), -1)
    draft = torch.softmax(torch.randn(3, 3, width, generator=torch.Generator().manual_seed(5)), -1)
    ids = torch.tensor([[2, 4, 1], [1, 1, 5], [4, 2, 5]])
    accept_u, final_u = np.full((3, 3), 0.4), np.array([0.1, 0.6, 0.9])
    lengths = [0, 1, 2]
    clean = verify_block(target, draft, ids, lengths, accept_u, final_u, d2t)
    for row, length in enumerate(lengths):
        target[row, length + 1 :], draft[row, length:] = math.nan, math.nan
        ids[row, length:], accept_u[row, length:] = -1, math.nan
    assert verify_block(target, draft, ids, lengths, accept_u, final_u, d2t) == clean


def test_without_slots_it_is_plain_decoding() -> None:
    target = torch.softmax(torch.randn(6, 4, 20, generator=torch.Generator().manual_seed(3)), -1)
    u = np.linspace(0, 0.99, 6)
    expected = Verdict([0] * 6, draw(target[:, 0], u).tolist())
    ids, draft = torch.zeros(6, 3, dtype=torch.int64), torch.full((6, 3, 20), 0.05)
    assert verify_block(target, draft, ids, [0] * 6, np.zeros((6, 3)), u) == expected
    none = (target[:, :1], draft[:, :0], ids[:, :0], [0] * 6, np.zeros((6, 0)), u)
    assert verify_block(*none) == expected


def test_inputs_stay_as_they_were() -> None:
    target = torch.softmax(torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(6)), -1)
    draft = torch.softmax(torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(7)), -1)
    copies = target.clone(), draft.clone()
    zeros = torch.zeros(4, 2).long()
    verify_block(target, draft, zeros, [2] * 4, np.full((4, 2), 0.9), np.zeros(4))
    assert torch.equal(target, copies[0])
    assert torch.equal(draft, copies[1])


def test_rounding_leaves_something_to_draw_from() -> None:
    """P and Q equal but for the last bit: what p P has beyond Q may be nothing at all."""
    target = torch.tensor([[[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]])
    draft = torch.tensor([[[0.5000001, 0.4999999], [0.5, 0.5]]])
    u = np.full((1, 2), NEVER)
    verdict = verify_block(target, draft, torch.tensor([[0, 1]]), [2], u, np.array([0.75]))
    assert verdict.accepted == [0]
    assert verdict.next_id == [1]
