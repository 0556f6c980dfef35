"""Grammars that fail or contradict themselves: their own requests end, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from dspark.core import Request, SamplingParams
from dspark.drafters.drafter import Drafter
from dspark.engine.async_engine import AsyncEngine
from dspark.engine.engine import Engine
from dspark.errors import EngineError
from dspark.targets.target import Target
from scripted import answer, random_drafter, whole_blocks
from staged import read, run

FREE = SamplingParams(temperature=1.0, max_new_tokens=16, seed=1)
PROMPTS = [[1, 20, 30], [50, 51] * 3]
POISONED = [9, 8]
FAULTS = {
    "refuses drafts": "refuses a draft that its masks allowed",
    "refuses its answer": "refuses what it allowed before",
    "allows nothing": "allows no token",
    "cannot go on": "ValueError: not in the grammar",
    "breaks": "IndexError: no such state",
}


@dataclass
class Poison:
    """Allows every token of a vocabulary, until it fails after ``healthy`` tokens."""

    size: int
    fault: str
    healthy: int = 4
    taken: int = 0

    def start(self) -> Poison:
        return Poison(self.size, self.fault, self.healthy)

    def advance(self, ids: Sequence[int]) -> None:
        self.taken += len(ids)
        if self.fault == "cannot go on" and self.taken > self.healthy:
            raise ValueError("not in the grammar")

    def allowed(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
        if self.taken > self.healthy:
            if self.fault == "breaks":
                raise IndexError("no such state")
            if self.fault == "refuses its answer" or (self.fault == "refuses drafts" and ids):
                return None
        return np.full(self.size, self.fault != "allows nothing" or self.taken <= self.healthy)


def poisoned(target: Target, fault: str) -> SamplingParams:
    grammar = Poison(target.spec.vocab_size, fault)
    return SamplingParams(max_new_tokens=30, ignore_stop=True, grammar=grammar)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["dspark", "eagle3"])
def test_one_poisoned_request_ends_alone(
    kind: str, fault: str, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    drafter = random_drafter(target, 4, kind=kind)
    alone = [answer(target, drafter, [prompt], FREE)[0] for prompt in PROMPTS]

    async def main() -> None:
        engine = AsyncEngine(Engine(target, drafter, whole_blocks(drafter), slots=3, max_len=64))
        # The first of them, so that a guess, which takes the latest, would be wrong.
        bad = engine.stream(POISONED, poisoned(target, fault))
        good = [engine.stream(prompt, FREE) for prompt in PROMPTS]
        engine.start()
        said, *texts = await asyncio.gather(read(bad), *map(read, good), return_exceptions=True)
        assert texts == alone
        assert isinstance(said, EngineError)
        assert FAULTS[fault] in str(said)
        assert engine.healthy
        assert await read(engine.stream(PROMPTS[0], FREE)) == alone[0]
        await engine.stop()

    run(main())
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["request 1 made a step fail: The grammar of an answer failed"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("drafted", [False, True])
def test_a_step_that_fails_changes_no_text(
    fault: str, drafted: bool, target: Target, drafter: Drafter
) -> None:
    if fault == "refuses drafts" and not drafted:
        pytest.skip("it has nothing to refuse")
    helper = drafter if drafted else None
    alone = [answer(target, helper, [prompt], FREE)[0] for prompt in PROMPTS]
    engine = Engine(target, helper, whole_blocks(helper), slots=3, max_len=64)
    first, bad, last = (
        engine.submit(PROMPTS[0], FREE),
        engine.submit(POISONED, poisoned(target, fault)),
        engine.submit(PROMPTS[1], FREE),
    )
    for _ in range(2):  # it does not go away by itself
        error, said = first_failure(engine, [first, bad, last])
        assert FAULTS[fault] in str(error)
        assert error.requests == (bad.id,)
        assert outputs(first, bad, last) == said
    assert len(bad.output_ids) > 4
    engine.cancel(bad)
    while engine.queue:
        engine.step()
    assert outputs(first, last) == alone


def first_failure(
    engine: Engine, requests: Sequence[Request]
) -> tuple[EngineError, list[list[int]]]:
    """The error of the first step that fails, and what had been said before that step."""
    while engine.queue:
        said = outputs(*requests)
        try:
            engine.step()
        except EngineError as error:
            return error, said
    raise AssertionError("no step failed")


def outputs(*requests: Request) -> list[list[int]]:
    return [list(request.output_ids) for request in requests]
