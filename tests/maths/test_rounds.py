"""Exact rounds of a text: against enumerating every way in which a small model can be decoded."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from dspark.core import BLOCK, RULES
from dspark.maths.rounds import expected_rounds, standing, standing_greedily

V, K, N = 3, 2, 4  # tokens, slots, tokens of a text behind its first
Prefix = tuple[int, ...]


def world(seed: int) -> tuple[dict[Prefix, np.ndarray], dict[Prefix, np.ndarray]]:
    """Target and drafter: distributions by prefix, some tokens of the drafter's impossible."""
    rng = np.random.default_rng(seed)
    prefixes = [p for n in range(N + K + 1) for p in itertools.product(range(V), repeat=n)]

    def some(gaps: float) -> np.ndarray:
        weights = rng.random(V) ** 2 + 0.02
        weights *= rng.random(V) >= gaps
        weights[rng.integers(V)] += 0.05
        return weights / weights.sum()

    return {p: some(0.0) for p in prefixes}, {p: some(0.2) for p in prefixes}


def endings(p: list[np.ndarray], q: list[np.ndarray], draft: Prefix, rule: str) -> list[float]:
    """P(τ = 0 … K) of a draft."""
    if rule != BLOCK:
        keep = [min(1.0, p[k][x] / q[k][x]) for k, x in enumerate(draft)]
        return [
            math.prod(keep[:m]) * (1 - keep[m] if m < len(draft) else 1.0)
            for m in range(len(draft) + 1)
        ]
    kept = [1.0]
    for k, x in enumerate(draft):
        kept.append(min(1.0, kept[-1] * p[k][x] / q[k][x]))
    h = [1.0]
    for i in range(1, len(draft)):
        left = float(np.maximum(kept[i] * p[i] - q[i], 0).sum())
        h.append(left / (left + 1 - kept[i]) if left + 1 - kept[i] else 1.0)
    h.append(kept[-1])
    return [h[m] * math.prod(1 - later for later in h[m + 1 :]) for m in range(len(draft) + 1)]


def after(
    p: list[np.ndarray], q: list[np.ndarray], draft: Prefix, tau: int, rule: str
) -> np.ndarray:
    """Law of the token behind the drafts that stand."""
    if tau == len(draft):
        return p[tau]
    kept = 1.0
    if rule == BLOCK:
        for k, x in enumerate(draft[:tau]):
            kept = min(1.0, kept * p[k][x] / q[k][x])
    left = np.maximum(kept * p[tau] - q[tau], 0)
    return left / left.sum() if left.sum() else p[tau]


def decodings(seed: int, rule: str) -> dict[Prefix, dict[int, float]]:
    """Every text with the probability of each number of rounds."""
    target, drafter = world(seed)

    def round_of(prefix: Prefix) -> Iterator[tuple[Prefix, float]]:
        for draft in itertools.product(range(V), repeat=K):
            p = [target[prefix + draft[:k]] for k in range(K + 1)]
            q = [drafter[prefix + draft[:k]] for k in range(K)]
            chance = math.prod(float(q[k][x]) for k, x in enumerate(draft))
            if not chance:
                continue
            for tau, ends in enumerate(endings(p, q, draft, rule)):
                if ends:
                    for token, mass in enumerate(after(p, q, draft, tau, rule)):
                        yield (*prefix, *draft[:tau], token), chance * ends * float(mass)

    @cache
    def steps(prefix: Prefix) -> list[tuple[Prefix, float]]:
        grown: dict[Prefix, float] = defaultdict(float)
        for text, mass in round_of(prefix):
            grown[text[:N]] += mass
        return list(grown.items())

    found: dict[Prefix, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    open_texts: dict[tuple[Prefix, int], float] = {((), 0): 1.0}
    while open_texts:
        longer: dict[tuple[Prefix, int], float] = defaultdict(float)
        for (prefix, rounds), mass in open_texts.items():
            for text, chance in steps(prefix):
                if len(text) == N:
                    found[text][rounds + 1] += mass * chance
                else:
                    longer[text, rounds + 1] += mass * chance
        open_texts = longer
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_mean_over_all_ways_to_decode_the_text(seed: int, rule: str) -> None:
    target, drafter = world(seed)
    texts = decodings(seed, rule)
    assert sum(sum(by.values()) for by in texts.values()) == pytest.approx(1)
    [other] = set(RULES) - {rule}
    off = 0.0
    for text, by_rounds in texts.items():
        whole = sum(by_rounds.values())
        p = math.prod(float(target[text[:k]][x]) for k, x in enumerate(text))
        assert whole == pytest.approx(p, abs=1e-12)  # nothing is lost
        ratio_AK = np.full((N, K), np.nan)  # behind the end there is nothing to know
        for anchor in range(N):
            for k in range(min(K, N - anchor)):
                before, token = text[: anchor + k], text[anchor + k]
                with np.errstate(divide="ignore"):
                    ratio_AK[anchor, k] = np.log(drafter[before][token] / target[before][token])
        mean = sum(rounds * mass for rounds, mass in by_rounds.items()) / whole
        assert expected_rounds(standing(ratio_AK, rule)) == pytest.approx(mean, abs=1e-10)
        off = max(off, abs(expected_rounds(standing(ratio_AK, other)) - mean))
    assert off > 0.01  # control: the other rule's count is told apart


def test_a_block_takes_no_more_rounds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        ratio_AK = rng.normal(-0.5, 1.5, (30, 7))
        token, block = (expected_rounds(standing(ratio_AK, rule)) for rule in ("token", "block"))
        assert block < token


def test_greedy_rounds_are_counted_one_by_one() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        tokens, slots = int(rng.integers(1, 40)), int(rng.integers(1, 6))
        best_AK = rng.random((tokens, slots)) < 0.7
        place = rounds = 0
        while place < tokens:
            accepted = 0
            while accepted < slots and best_AK[place, accepted]:
                accepted += 1
            place, rounds = place + accepted + 1, rounds + 1
        assert expected_rounds(standing_greedily(best_AK)) == rounds


def test_the_ends() -> None:
    assert expected_rounds(np.zeros((0, 4))) == 0
    assert expected_rounds(np.zeros((5, 4))) == 5  # nothing ever stands
    assert expected_rounds(np.ones((5, 4))) == 1
    assert expected_rounds(np.ones((6, 4))) == 2
