"""Block verification keeps the distribution exactly; controls that do not are seen.

The tests look at the rule from outside: in a batch of every possible draft each threshold of
the uniform numbers is found by bisection to the last bit, so the law of what is committed is exact
whatever the thresholds are.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from dspark.core import Verdict
from dspark.maths.block_verification import prefix_probability, verify_block
from dspark.maths.sampling import draw
from dspark.maths.verification import residual

torch.set_num_threads(1)

V, K, WORLDS = 3, 3, 20
DRAFTS = list(itertools.product(range(V), repeat=K))
NEVER = 1 - 2**-53

Length = Callable[[int, tuple[int, ...]], int]  # of a world and a draft


@dataclass
class Worlds:
    """Pairs of models, whose next distribution hangs on all tokens before it.

    Attributes:
        target, draft: by world and prefix.
        d2t: token of each draft id.
    """

    target: list[dict[tuple[int, ...], np.ndarray]]
    draft: list[dict[tuple[int, ...], np.ndarray]]
    d2t: list[int] | None = None

    @classmethod
    def random(cls, d2t: list[int] | None = None, seed: int = 0) -> Worlds:
        rng = np.random.default_rng(seed)
        prefixes = [p for n in range(K + 1) for p in itertools.product(range(V), repeat=n)]
        width = V if d2t is None else len(d2t)

        def table(size: int) -> list[dict[tuple[int, ...], np.ndarray]]:
            return [{p: some_distribution(rng, size) for p in prefixes} for _ in range(WORLDS)]

        return cls(table(V), table(width), d2t)

    def wide(self, world: int, prefix: tuple[int, ...]) -> np.ndarray:
        """The drafter's distribution over all tokens."""
        full = np.zeros(V)
        full[self.d2t or list(range(V))] = self.draft[world][prefix]
        return full

    def text(self, world: int, tokens: tuple[int, ...]) -> float:
        """How likely the target says these tokens first."""
        row = self.target[world]
        return math.prod(row[tokens[:k]][token] for k, token in enumerate(tokens))


def some_distribution(rng: np.random.Generator, size: int) -> np.ndarray:
    """Often with tokens of probability zero."""
    weights = rng.random(size) ** 2 * (rng.random(size) < 0.9)
    weights[rng.integers(size)] += 0.1
    return weights / weights.sum()


@dataclass
class Case:
    """A draft of a world under a verify length, and how likely it is drafted."""

    world: int
    draft: tuple[int, ...]
    length: int
    chance: float


def cases_of(worlds: Worlds, length_of: Length) -> list[Case]:
    cases = []
    for world in range(WORLDS):
        for draft in DRAFTS:
            rows = [worlds.wide(world, draft[:k]) for k in range(K)]
            chance = math.prod(rows[k][token] for k, token in enumerate(draft))
            if chance:
                cases.append(Case(world, draft, length_of(world, draft), chance))
    return cases


Judge = Callable[[np.ndarray, np.ndarray], Verdict]  # of uniform numbers [N, K] and [N]


def judged(worlds: Worlds, cases: list[Case], judge: Any) -> Judge:
    """The verdict of a batch; what lies behind a verify length is not a number."""
    width = V if worlds.d2t is None else len(worlds.d2t)
    target = torch.full((len(cases), K + 1, V), math.nan, dtype=torch.float64)
    draft = torch.full((len(cases), K, width), math.nan, dtype=torch.float64)
    for row, case in enumerate(cases):
        for k in range(case.length + 1):
            target[row, k] = torch.from_numpy(worlds.target[case.world][case.draft[:k]])
        for k in range(case.length):
            draft[row, k] = torch.from_numpy(worlds.draft[case.world][case.draft[:k]])
    ids = torch.tensor([case.draft for case in cases])
    lengths = torch.tensor([case.length for case in cases])
    d2t = None if worlds.d2t is None else torch.tensor(worlds.d2t)
    return lambda u, final: judge(target, draft, ids, lengths, u, final, d2t)


def bisected(count: int, passes: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Where each row's test stops passing, for tests that pass below a threshold in [0, 1]."""
    low, high = np.zeros(count), np.ones(count)
    for _ in range(54):
        middle = (low + high) / 2
        passed = passes(middle)
        low, high = np.where(passed, middle, low), np.where(passed, high, middle)
    return high


End = tuple[Case, int, float]  # a draft, τ and how likely both are


def endings(worlds: Worlds, length_of: Length, judge: Any = verify_block) -> list[End]:
    """Every draft with every τ that it may have."""
    cases = cases_of(worlds, length_of)
    places = [(row, slot) for row, case in enumerate(cases) for slot in range(case.length)]
    rows = [cases[row] for row, _ in places]
    slots = np.array([slot for _, slot in places], dtype=int)
    batch = judged(worlds, rows, judge) if rows else None

    def ends_here(u: np.ndarray) -> np.ndarray:  # no other slot passes
        numbers = np.full((len(rows), K), NEVER)
        numbers[np.arange(len(rows)), slots] = u
        assert batch is not None
        return np.array(batch(numbers, np.zeros(len(rows))).accepted) >= slots + 1

    h = np.zeros((len(cases), K))
    found = bisected(len(rows), ends_here) if rows else np.zeros(0)
    h[[row for row, _ in places], slots] = np.where(found > 2**-52, found, 0.0)
    ends = []
    for row, case in enumerate(cases):
        for tau in range(case.length + 1):
            later = math.prod(1 - h[row, j] for j in range(tau, case.length))
            chance = case.chance * later * (h[row, tau - 1] if tau else 1.0)
            if chance > 1e-15:
                ends.append((case, tau, chance))
    return ends


def output_law(worlds: Worlds, length_of: Length, judge: Any = verify_block) -> np.ndarray:
    """Law of the first K + 1 tokens when one round precedes plain decoding, [WORLDS, V, …]."""
    ends = endings(worlds, length_of, judge)
    taus = np.repeat([tau for _, tau, _ in ends], V - 1)
    tokens = np.tile(np.arange(V - 1), len(ends))
    numbers = np.full((len(taus), K), NEVER)
    passing = np.flatnonzero(taus)
    numbers[passing, taus[passing] - 1] = 0.0
    batch = judged(worlds, [case for case, _, _ in ends for _ in range(V - 1)], judge)

    def at_most(u: np.ndarray) -> np.ndarray:
        verdict = batch(numbers, np.minimum(u, NEVER))
        assert verdict.accepted == taus.tolist()
        return np.array(verdict.next_id) <= tokens

    below = np.ones((len(ends), V + 1))
    below[:, 0] = 0
    below[:, 1:V] = bisected(len(taus), at_most).reshape(len(ends), V - 1)
    law = np.zeros((WORLDS,) + (V,) * (K + 1))
    for (case, tau, chance), edges in zip(ends, below, strict=True):
        for token in range(V):
            head = (*case.draft[:tau], token)
            mass, given = chance * (edges[token + 1] - edges[token]), worlds.text(case.world, head)
            for rest in itertools.product(range(V), repeat=K - tau):
                text = (*head, *rest)
                share = worlds.text(case.world, text) / given if given else 1 / V ** len(rest)
                law[(case.world, *text)] += mass * share
    return law


def true_law(worlds: Worlds) -> np.ndarray:
    law = np.zeros((WORLDS,) + (V,) * (K + 1))
    for place in np.ndindex(*law.shape):
        law[place] = worlds.text(place[0], place[1:])
    return law


def stopping(looks_at_itself: bool) -> Length:
    """Whether x_k is verified hangs on x_1 … x_{k-1}, and on x_k too in the control."""

    @cache
    def length_of(world: int, draft: tuple[int, ...]) -> int:
        rng = np.random.default_rng(world)
        goes_on = {
            p: rng.random() < 0.6
            for n in range(K + 1)
            for p in itertools.product(range(V), repeat=n)
        }
        for k in range(K):
            if not goes_on[draft[: k + looks_at_itself]]:
                return k
        return K

    return length_of


LAWFUL: dict[str, Length] = {
    "plain": lambda world, draft: 0,
    "one": lambda world, draft: 1,
    "two": lambda world, draft: 2,
    "all": lambda world, draft: K,
    "stopping time": stopping(looks_at_itself=False),
}
WHOLE, REDUCED = Worlds.random(), Worlds.random([2, 0], seed=1)


@pytest.mark.parametrize("worlds", [WHOLE, REDUCED], ids=["whole", "reduced"])
@pytest.mark.parametrize("length", LAWFUL)
def test_the_output_distribution_is_exactly_the_targets(worlds: Worlds, length: str) -> None:
    law = output_law(worlds, LAWFUL[length])
    assert law.sum((1, 2, 3, 4)) == pytest.approx(np.ones(WORLDS), abs=1e-12)
    assert np.abs(law - true_law(worlds)).max() < 1e-12


def test_lengths_do_hang_on_the_draft() -> None:
    length_of = stopping(looks_at_itself=False)
    several = [len({length_of(world, draft) for draft in DRAFTS}) > 1 for world in range(WORLDS)]
    assert np.mean(several) > 0.4


def residual_of_tokens(*args: Any) -> Verdict:
    """τ of block verification, and then the residual of the token rule."""
    target, draft, ids, lengths, _, final, d2t = args
    verdict = verify_block(*args)
    accepted, rows = torch.tensor(verdict.accepted), torch.arange(len(ids))
    last = target[rows, accepted]
    cut = (accepted < torch.as_tensor(lengths)).nonzero()[:, 0]
    last[cut] = residual(last[cut], draft[cut, accepted[cut]], d2t)
    return Verdict(verdict.accepted, draw(last, final).tolist())


def bonus_after_a_cut(*args: Any) -> Verdict:
    target, _, ids, _, _, final, _ = args
    verdict = verify_block(*args)
    rows = target[torch.arange(len(ids)), torch.tensor(verdict.accepted)]
    return Verdict(verdict.accepted, draw(rows, final).tolist())


def wrong_temperature(*args: Any) -> Verdict:
    target, draft, *rest = args
    colder = draft**2
    return verify_block(target, colder / colder.sum(-1, keepdim=True), *rest)


def every_slot_like_the_last(*args: Any) -> Verdict:
    """h_i = p_i: an ending in the middle that knows nothing of what lies behind it."""
    target, draft, ids, lengths, u, final, d2t = args
    slots = torch.arange(1, K + 1)
    judged_RK = slots <= torch.as_tensor(lengths)[:, None]
    kept = prefix_probability(target[:, :K], draft, ids, d2t, judged_RK)
    ends = (torch.as_tensor(u) < kept[:, 1:]) & judged_RK
    accepted, rows = (ends * slots).amax(1), torch.arange(len(ids))
    last = target[rows, accepted]
    cut = (accepted < torch.as_tensor(lengths)).nonzero()[:, 0]
    scaled = last[cut] * kept[cut, accepted[cut]][:, None]
    last[cut] = residual(scaled, draft[cut, accepted[cut]], d2t)
    return Verdict(accepted.tolist(), draw(last, final).tolist())


CONTROLS = [
    residual_of_tokens,
    bonus_after_a_cut,
    wrong_temperature,
    every_slot_like_the_last,
]


@pytest.mark.parametrize("worlds", [WHOLE, REDUCED], ids=["whole", "reduced"])
@pytest.mark.parametrize("control", CONTROLS)
def test_control_a_broken_rule_shows_in_the_exact_law(worlds: Worlds, control: Any) -> None:
    law = output_law(worlds, LAWFUL["all"], control)
    assert law.sum((1, 2, 3, 4)) == pytest.approx(np.ones(WORLDS), abs=1e-12)
    assert np.abs(law - true_law(worlds)).max() > 0.01


@pytest.mark.parametrize("worlds", [WHOLE, REDUCED], ids=["whole", "reduced"])
def test_control_a_stop_that_peeks_at_the_token_it_cuts_shows(worlds: Worlds) -> None:
    law = output_law(worlds, stopping(looks_at_itself=True))
    assert law.sum((1, 2, 3, 4)) == pytest.approx(np.ones(WORLDS), abs=1e-12)
    assert np.abs(law - true_law(worlds)).max() > 0.01


# --- What it gains, and how often a prefix stands ---


def expected_accepted(worlds: Worlds, length_of: Length) -> tuple[np.ndarray, np.ndarray]:
    """Mean accepted tokens of each world: under the token rule, and under block verification."""
    means = np.zeros((2, WORLDS))
    for case in cases_of(worlds, length_of):
        token = block = 1.0
        for k in range(case.length):
            prefix, drawn = case.draft[:k], case.draft[k]
            p, q = worlds.target[case.world][prefix], worlds.wide(case.world, prefix)
            token *= min(1.0, p[drawn] / q[drawn])
            block = min(1.0, block * p[drawn] / q[drawn])
            means[:, case.world] += case.chance * np.array([token, block])
    return means[0], means[1]


@pytest.mark.parametrize("worlds", [WHOLE, REDUCED], ids=["whole", "reduced"])
@pytest.mark.parametrize("length", ["two", "all", "stopping time"])
def test_a_prefix_stands_with_its_probability_whatever_is_behind_it(
    worlds: Worlds, length: str
) -> None:
    """P(τ ≥ i | x_≤i, γ ≥ i) = p_i: what survival and calibration rest on."""
    drafted: dict[Any, float] = defaultdict(float)
    stands: dict[Any, float] = defaultdict(float)
    for case, tau, chance in endings(worlds, LAWFUL[length]):
        for i in range(1, case.length + 1):
            drafted[case.world, case.draft[:i]] += chance
            stands[case.world, case.draft[:i]] += chance * (tau >= i)
    for (world, prefix), chance in drafted.items():
        kept = 1.0
        for k, token in enumerate(prefix):
            p, q = worlds.target[world][prefix[:k]], worlds.wide(world, prefix[:k])
            kept = min(1.0, kept * p[token] / q[token])
        assert stands[world, prefix] == pytest.approx(kept * chance, abs=1e-12)


def test_it_never_accepts_fewer_and_often_more() -> None:
    for length in ("one", "two", "all", "stopping time"):
        token, block = expected_accepted(WHOLE, LAWFUL[length])
        assert (block >= token - 1e-12).all()
        if length == "one":
            assert block == pytest.approx(token)
        if length == "all":
            assert (block > token + 1e-3).mean() > 0.5
