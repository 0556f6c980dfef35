"""Grammars: the text stays inside them, and is distributed as plain decoding under them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dspark import core
from dspark.core import SamplingParams
from dspark.engine.engine import Engine
from dspark.targets.target import Target
from exact import BLOCK, PLAIN, PROMPT, SLOTS, SMALL, STOP, Text, p_values
from scripted import ScriptedDrafter, TableTarget, answer, random_drafter, whole_blocks

# Row: the token before (the last one: none yet). After 2 and 6 only tokens may come that are
# outside the drafter's vocabulary SMALL.
RULES = np.array(
    [
        [0, 1, 1, 1, 0, 1, 1],
        [1, 0, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [1, 1, 1, 0, 0, 0, 1],
        [1, 1, 0, 1, 0, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 1],
    ],
    dtype=bool,
)


@dataclass(frozen=True)
class Pairs:
    """Says which token may follow which."""

    rules: NDArray[np.bool_] = field(default_factory=lambda: RULES)

    def start(self) -> PairsState:
        return PairsState(self.rules)


@dataclass
class PairsState:
    rules: NDArray[np.bool_]
    last: int = -1

    def advance(self, ids: Sequence[int]) -> None:
        assert self.allows(ids)
        self.last = ids[-1]

    def allows(self, ids: Sequence[int]) -> bool:
        steps = zip([self.last, *ids], ids, strict=False)
        return all(self.rules[before, token] for before, token in steps)

    def allowed(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
        row = ids[-1] if ids else self.last
        return self.rules[row] if self.allows(ids) else None


KEPT = replace(PLAIN, grammar=Pairs())


def small_drafter(target: TableTarget) -> Any:
    return random_drafter(target, BLOCK, vocabulary=SMALL, gain=20.0, seed=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_keep_to_the_grammar(temperature: float) -> None:
    target = TableTarget()
    params = replace(KEPT, temperature=temperature, max_new_tokens=40, seed=3)
    prompts = [[a, b] for a in range(7) for b in range(7)]
    drafter = small_drafter(target)
    plain = answer(target, None, prompts, params, slots=9)
    assert all(PairsState(RULES).allows(text) for text in plain)
    drafted = answer(target, drafter, prompts, params, slots=9)
    assert all(PairsState(RULES).allows(text) for text in drafted)
    if temperature == 0:
        assert drafted == plain
    free = answer(target, None, prompts, replace(params, grammar=None), slots=9)
    assert not all(PairsState(RULES).allows(text) for text in free)


@pytest.mark.parametrize("rule", core.RULES)
def test_joint_counts_follow_the_target_under_the_grammar(rule: str) -> None:
    target = TableTarget(stop_ids=[STOP])
    drafter = small_drafter(target)
    engine = Engine(target, drafter, f"fixed:{BLOCK}", slots=SLOTS, seed=11, verification=rule)
    requests = engine.generate([PROMPT] * 16_000, KEPT)
    texts: Counter[Text] = Counter(tuple(request.output_ids) for request in requests)
    assert min(p_values(texts, KEPT)) > 1e-4
    assert min(p_values(texts, PLAIN)) < 1e-9  # the grammar matters
    first = Counter(request.rounds[0].verified for request in requests if request.rounds)
    assert first[BLOCK] > 400  # whole drafts inside the grammar
    assert sum(first[k] for k in range(1, BLOCK)) > 400  # drafts that ended early
    assert first[0] > 400  # after a 2 nothing in the drafter's vocabulary may come
    accepted = sum(record.accepted for request in requests for record in request.rounds)
    assert accepted > 4_000


def test_a_draft_outside_the_grammar_is_rejected() -> None:
    """A drafter that knows of no grammar costs time, not text."""
    target = TableTarget()
    blind = ScriptedDrafter(target, lambda slot, position: [2, 2, 2])
    params = replace(KEPT, temperature=0.0, max_new_tokens=30)
    assert answer(target, blind, [PROMPT], params) == answer(target, None, [PROMPT], params)


def test_company_without_a_grammar_is_not_touched(target: Target) -> None:
    drafter = random_drafter(target)
    prompts = [[1, 20, 30], [9], [50, 51] * 6]
    even = np.zeros(target.spec.vocab_size, dtype=bool)
    even[4::2] = True

    class Even:
        def start(self) -> Any:
            return self

        def advance(self, ids: Sequence[int]) -> None:
            assert even[list(ids)].all()

        def allowed(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
            return even if even[list(ids)].all() else None

    free = SamplingParams(temperature=1.0, max_new_tokens=20, seed=1)
    alone = answer(target, drafter, prompts, free)
    engine = Engine(target, drafter, whole_blocks(drafter), slots=4)
    kept = engine.submit(prompts[0], replace(free, grammar=Even()))
    others = [engine.submit(prompt, free) for prompt in prompts]
    while engine.queue:
        engine.step()
    assert [request.output_ids for request in others] == alone
    assert even[kept.output_ids].all()


@pytest.mark.parametrize("kind", ["eagle3", "mtp"])
def test_chain_drafters_keep_to_it_too(kind: str, target: Target) -> None:
    drafter = random_drafter(target, 4, kind=kind)
    even = torch.zeros(target.spec.vocab_size, dtype=torch.bool)
    even[4::2] = True
    seen: list[int] = []

    class Spy:
        lengths = (4,)

        def apply(self, logits: Any, drafted: Sequence[Any]) -> Any:
            seen.extend(int(ids[0]) for ids in drafted[-1:])
            return logits.masked_fill(~even, float("-inf"))

    cache = drafter.new_cache(1, 20)
    taps = target.states([[7, 8]], drafter.config.target_layer_ids)
    rows = taps[0] if taps[1] is None else taps[1]
    places = torch.tensor([0, 0]), torch.tensor([0, 1])
    drafter.extend(cache, rows, *places, torch.tensor([8, 9]))
    block = drafter.draft(cache, [9], [2], [0], [SamplingParams()], None, masks=Spy())
    assert even[block.draft_ids_RK].all()
    assert (block.lengths, seen) == ((4,), block.draft_ids_RK[0, :3].tolist())
