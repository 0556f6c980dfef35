"""The drafter's context: the same however long committed rows wait, and never ahead of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dspark.core import Batch, DraftDecision, SamplingParams
from dspark.drafters.drafter import Drafter
from dspark.engine import context
from dspark.engine.engine import Engine
from dspark.engine.policies import Fixed
from dspark.targets.target import Target
from scripted import random_drafter, whole_blocks

PROMPTS = [[1, 20, 30], [9], list(range(40, 65)), [50, 51] * 6, [7, 8, 9, 10, 11]]
KINDS = ["dspark", "eagle3", "mtp"]


class NowAndThen(Fixed):
    """Drafts in every fourth step, for all requests but the newest."""

    turns = 0

    def decide(self, batch: Batch) -> DraftDecision:
        return DraftDecision(batch.split(self.wants(batch)), self.draft_len)

    def wants(self, batch: Batch) -> Sequence[bool]:
        self.turns += 1
        wanted = self.turns % 4 == 0
        return [wanted and i < max(len(batch.decode) - 1, 1) for i in range(len(batch.decode))]


def drafts(target: Target, drafter: Drafter, lengths: Sequence[int]) -> tuple[list[Any], list[int]]:
    """Every draft of an engine that seldom drafts, and the rows that waited after each step."""
    found, waiting = [], []
    engine = Engine(target, drafter, NowAndThen(drafter.config.block_size), slots=3)
    make = drafter.draft

    def watched(cache: Any, anchors: Any, positions: Any, *rest: Any, **more: Any) -> Any:
        block = make(cache, anchors, positions, *rest, **more)
        found.append((anchors, positions, block.draft_ids_RK.tolist()))
        return block

    drafter.draft = watched  # type: ignore[method-assign]
    try:
        for prompt, length in zip(PROMPTS, lengths, strict=True):
            engine.submit(prompt, SamplingParams(max_new_tokens=length, ignore_stop=True))
        while engine.queue:
            engine.step()
            assert engine.runner._context is not None
            waiting.append(engine.runner._context.waiting)
    finally:
        del drafter.draft
    return found, waiting


@pytest.mark.parametrize("kind", KINDS)
def test_waiting_rows_change_no_draft(
    kind: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = random_drafter(target, kind=kind)
    lengths = [30, 17, 25, 9, 21]  # slots change hands while rows wait
    late, waited = drafts(target, drafter, lengths)
    assert max(waited) >= 6
    assert min(waited) == 0
    monkeypatch.setattr(context, "MOST_WAITING", 0)
    at_once, never = drafts(target, drafter, lengths)
    assert max(never) == 0
    assert len(late) > 8
    assert late == at_once


def test_rows_do_not_wait_without_end(
    target: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "MOST_WAITING", 4)
    monkeypatch.setattr(NowAndThen, "wants", lambda self, batch: [False] * len(batch.decode))
    found, waited = drafts(target, drafter, [30] * 5)
    assert not found
    assert 2 <= max(waited) <= 4


def test_what_ends_without_a_draft_is_never_taken_in(
    target: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the request in the first slot is drafted; slots change hands meanwhile."""
    monkeypatch.setattr(
        NowAndThen, "wants", lambda self, batch: [r.slot == 0 for r in batch.decode]
    )
    taken: list[set[int]] = []
    extend = drafter.extend

    def watched(cache: Any, taps: Any, slots_T: torch.Tensor, *rest: Any) -> None:
        taken.append(set(slots_T.tolist()))
        extend(cache, taps, slots_T, *rest)

    drafter.extend = watched  # type: ignore[method-assign]
    _, waited = drafts(target, drafter, [12, 7, 30, 9, 5])
    assert set().union(*taken) == {0}
    assert max(waited) > 10
    assert waited[-1] == 0


def test_only_a_chain_is_told_the_tokens_after(target: Target) -> None:
    asked: dict[str, list[bool]] = {}
    for kind in KINDS:
        drafter = random_drafter(target, kind=kind)
        extend = drafter.extend

        def watched(*args: Any, kind: str = kind, extend: Any = extend) -> None:
            asked.setdefault(kind, []).append(isinstance(args[-1], torch.Tensor))
            extend(*args)

        drafter.extend = watched  # type: ignore[method-assign]
        Engine(target, drafter, whole_blocks(drafter), slots=2).generate(
            PROMPTS, SamplingParams(max_new_tokens=8)
        )
    assert {kind: set(told) for kind, told in asked.items()} == {
        "dspark": {False},
        "eagle3": {True},
        "mtp": {True},
    }
