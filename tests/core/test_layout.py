"""The rows of a step: roles, places, and what stays of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dspark.core import Batch, Chunk, Request, Role, StepLayout, logits_of


def drafts(ids_RK: list[list[int]], sure_RK: list[list[float]] | None = None) -> Any:
    sure = None if sure_RK is None else SimpleNamespace(tolist=lambda: sure_RK)
    return SimpleNamespace(draft_ids_RK=SimpleNamespace(tolist=lambda: ids_RK), confidence_RK=sure)


def running(number: int) -> Request:
    return Request(number, [7, 7], output_ids=[10 + number], slot=number)


PART, WHOLE = Request(1, [1, 2, 3, 4], slot=1), Request(2, [5, 6], slot=2)
PROMPTS = [Chunk(PART, 0, 3), Chunk(WHOLE, 0, 2)]


def test_a_step_with_every_role() -> None:
    plain, first, second = map(running, (3, 4, 5))
    block = drafts([[20, 21, 22], [23, 24, 25]], [[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]])
    layout = StepLayout.build(Batch(PROMPTS, [first, second], [plain]), block, [2, 0])
    assert [
        (span.request.id, span.role, span.ids, span.start, span.verified) for span in layout.spans
    ] == [
        (1, Role.CONTEXT, [1, 2, 3], 0, 0),
        (2, Role.FIRST, [5, 6], 0, 0),
        (3, Role.PLAIN, [13], 2, 0),
        (4, Role.DRAFTED, [14, 20, 21], 2, 2),
        (5, Role.DRAFTED, [15], 2, 0),
    ]
    assert [list(span.rows) for span in layout.spans] == [[0, 1, 2], [3, 4], [5], [6, 7, 8], [9]]
    assert [len(span.logits) for span in layout.spans] == [0, 1, 1, 3, 1]
    assert layout.logit_rows == [4, 5, 6, 7, 8, 9]
    assert logits_of(layout.of(Role.DRAFTED)) == slice(2, 6)
    assert logits_of(layout.of(Role.PLAIN)) == slice(1, 2)
    assert [span.next_id for span in layout.spans] == [4, None, None, None, None]
    drafted = layout.of(Role.DRAFTED)
    assert [(span.drafted, span.confidence) for span in drafted] == [
        (3, (0.9, 0.8, 0.7)),
        (3, (0.6, 0.5, 0.4)),
    ]
    assert [list(drafted[0].kept(n)) for n in (0, 2)] == [[6], [6, 7, 8]]
    assert list(layout.spans[0].kept(0)) == [0, 1, 2]
    assert layout.rows == 10


def test_without_drafts_everybody_is_plain() -> None:
    layout = StepLayout.build(Batch([], [running(3)]), None, [0])
    [span] = layout.spans
    assert (span.role, span.drafted, span.draft_ids, span.confidence) == (Role.PLAIN, 0, [], ())


def test_a_step_of_prompts_alone() -> None:
    layout = StepLayout.build(Batch(PROMPTS[:1], []), None, ())
    assert (layout.rows, layout.logit_rows) == (3, [])
    assert layout.of(Role.DRAFTED) == []
    assert logits_of([]) == slice(0)
