"""Slots and queue under any order of operations, and every way a text can be cut."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.core import (
    Batch,
    Chunk,
    FinishReason,
    Request,
    Result,
    RoundRecord,
    SamplingParams,
    StepLayout,
    TokenKind,
)
from dspark.engine.queue import RequestQueue
from dspark.engine.slots import SlotPool

STOP = 2
A, D, P = TokenKind.ACCEPTED, TokenKind.DRAWN, TokenKind.PLAIN


def make(number: int = 1, prompt: int = 3, **params: Any) -> Request:
    return Request(number, [7] * prompt, SamplingParams(**params))


def draft(*rows: list[int]) -> Any:
    """A DraftBlock's ids without torch."""
    ids_RK = SimpleNamespace(tolist=lambda: [list(r) for r in rows])
    return SimpleNamespace(draft_ids_RK=ids_RK, confidence_RK=None)


def start(queue: RequestQueue, *requests: Request, token: int = 9) -> None:
    """Admit and prefill requests."""
    for request in requests:
        queue.submit(request)
    batch = queue.next_batch()
    assert batch.starting == list(requests)
    results = [Result(0, token)] * len(batch.prefill) + [Result(0, 9)] * len(batch.decode)
    queue.commit(StepLayout.build(batch, None, ()), results)


def one_round(
    queue: RequestQueue, ids: list[int], accepted: int, next_id: int, verified: int | None = None
) -> Any:
    """Commit one round of a queue with one request."""
    batch = queue.next_batch()
    assert not batch.prefill
    length = len(ids) if verified is None else verified
    layout = StepLayout.build(batch, draft(ids), [length])
    [output] = queue.commit(layout, [Result(accepted, next_id)])
    return output


def test_slots_are_the_lowest_free_ones() -> None:
    pool = SlotPool(3)
    assert [pool.acquire(), pool.acquire(), pool.acquire()] == [0, 1, 2]
    pool.release(1)
    pool.release(0)
    assert (len(pool), pool.acquire(), pool.acquire(), len(pool)) == (2, 0, 1, 0)


def test_slots_are_given_back_once() -> None:
    pool = SlotPool(1)
    with pytest.raises(AssertionError):
        pool.release(0)
    pool.acquire()
    with pytest.raises(AssertionError):
        pool.acquire()


def plain_step(queue: RequestQueue) -> Batch:
    """A step in which everybody gets a token from the target."""
    batch = queue.next_batch()
    assert queue.held <= queue.cache_len
    layout = StepLayout.build(batch, None, ())
    queue.commit(layout, [Result(0, 8 if span.logits else None) for span in layout.spans])
    return batch


def test_prompts_in_order_in_parts_within_the_rows_of_a_step() -> None:
    queue = RequestQueue(slots=3, max_len=100, prefill_rows=10)
    requests = [make(i, prompt) for i, prompt in enumerate([12, 4, 6, 1, 1])]
    for request in requests:
        queue.submit(request)
    parts = []
    for step in range(4):
        batch = plain_step(queue)
        parts.append([(chunk.request.id, chunk.start, chunk.end) for chunk in batch.prefill])
        assert batch.prefill_rows <= 10
        if step == 1:
            queue.cancel(requests[1])
    assert parts == [[(0, 0, 10)], [(0, 10, 12), (1, 0, 4), (2, 0, 4)], [(2, 4, 6), (3, 0, 1)], []]
    assert (requests[3].slot, queue.waiting) == (1, 1)
    assert [len(request.output_ids) for request in requests] == [3, 1, 2, 2, 0]


def test_a_batch_that_was_not_committed_comes_again() -> None:
    queue = RequestQueue(slots=2, max_len=100)
    first, second = make(1), make(2)
    queue.submit(first)
    assert queue.next_batch() == Batch([Chunk(first, 0, 3)], [])
    queue.submit(second)
    assert queue.next_batch() == Batch([Chunk(first, 0, 3), Chunk(second, 0, 3)], [])


def test_the_latest_gives_its_place_up_when_texts_outgrow_the_cache() -> None:
    queue = RequestQueue(slots=3, max_len=19, cache_len=19)
    first, second, third = make(1, 5), make(2, 5), make(3, 5)
    for request in (first, second, third):
        queue.submit(request)
    batch = plain_step(queue)  # 6 positions each, and one more for the next round of each
    assert [chunk.request for chunk in batch.prefill] == [first, second]
    while not queue.preemptions:
        plain_step(queue)
    said = list(second.output_ids)
    assert (second.slot, second.cached, first.slot is None) == (None, 0, False)
    assert (queue.running, queue.waiting) == (1, 2)
    queue.cancel(first)
    batch = queue.next_batch()  # before the third, with its text but for the anchor
    assert batch.prefill[0] == Chunk(second, 0, 5 + len(said) - 1)
    assert batch.prefill[0].ids() == [7] * 5 + said[:-1]
    assert batch.prefill[0].next_id() == said[-1]
    assert second not in batch.starting
    plain_step(queue)
    assert second.output_ids == said
    plain_step(queue)
    assert second.output_ids == [*said, 8]


def test_one_request_may_fill_the_whole_cache() -> None:
    queue = RequestQueue(slots=2, max_len=20, cache_len=20, draft_len=4)
    request, other = make(1, 18, max_new_tokens=99), make(2, 1)
    queue.submit(request)
    queue.submit(other)
    for _ in range(3):
        plain_step(queue)
    assert (request.finish, len(request.output_ids)) == (FinishReason.LENGTH, 2)
    assert other.output_ids == [8]


def test_slots_that_are_given_back_are_told_of() -> None:
    freed: list[int] = []
    queue = RequestQueue(2, 10, cache_len=14, on_release=freed.append)
    first, second = make(1, 4, max_new_tokens=3), make(2, 4)
    start(queue, first, second)
    queue.cancel(second)
    while queue:
        plain_step(queue)
    assert freed == [1, 0]


def test_round_commits_accepted_drafts_and_the_drawn_token() -> None:
    queue = RequestQueue(1, 100, [STOP])
    request = make()
    start(queue, request)
    output = one_round(queue, [4, 5, 6], 2, 8)
    assert (output.token_ids, output.kinds) == ([4, 5, 8], [A, A, D])
    assert request.output_ids == [9, 4, 5, 8]
    assert request.rounds == [RoundRecord(3, 3, 2, 3)]
    assert (request.round, request.finish, output.finished) == (1, None, False)


def test_a_round_keeps_the_confidences_of_its_slots() -> None:
    queue = RequestQueue(1, 100)
    request = make()
    start(queue, request)
    drafts = draft([4, 5])
    drafts.confidence_RK = SimpleNamespace(tolist=lambda: [[0.75, 0.5]])
    queue.commit(StepLayout.build(queue.next_batch(), drafts, [1]), [Result(0, 8)])
    assert request.rounds == [RoundRecord(2, 1, 0, 1, confidence=(0.75, 0.5))]


def test_plain_round_has_a_plain_token() -> None:
    queue = RequestQueue(1, 100)
    request = make()
    start(queue, request)
    assert one_round(queue, [4, 5], 0, 8, verified=0).kinds == [P]
    assert request.rounds == [RoundRecord(2, 0, 0, 1)]


@pytest.mark.parametrize(
    ("ids", "accepted", "next_id", "text", "record"),
    [
        ([4, STOP, 6], 3, 8, [4, STOP], RoundRecord(3, 3, 2, 2, True)),  # and no bonus
        ([STOP, 4, STOP], 3, 8, [STOP], RoundRecord(3, 3, 1, 1, True)),
        ([4, STOP, 6], 1, 8, [4, 8], RoundRecord(3, 3, 1, 2, False)),  # the stop was rejected
        ([4, 5, 6], 1, STOP, [4, STOP], RoundRecord(3, 3, 1, 2, True)),
        ([4, 5, STOP], 3, STOP, [4, 5, STOP], RoundRecord(3, 3, 3, 3, True)),
    ],
)
def test_stop_tokens(
    ids: list[int], accepted: int, next_id: int, text: list[int], record: RoundRecord
) -> None:
    queue = RequestQueue(1, 100, [STOP])
    request = make()
    start(queue, request)
    output = one_round(queue, ids, accepted, next_id)
    assert output.token_ids == text
    assert len(output.kinds) == len(text)
    assert request.rounds == [record]
    assert output.finished is (STOP in text)
    assert request.finish is (FinishReason.STOP if STOP in text else None)
    assert (request.slot is None, bool(queue)) == (STOP in text, STOP not in text)


def test_ignored_stop_tokens() -> None:
    queue = RequestQueue(1, 100, [STOP])
    request = make(ignore_stop=True)
    start(queue, request, token=STOP)
    assert one_round(queue, [STOP, 5], 2, STOP).token_ids == [STOP, 5, STOP]
    assert request.finish is None


@pytest.mark.parametrize("by_params", [True, False])
@pytest.mark.parametrize(
    ("room", "accepted", "committed", "finish"),
    [
        (1, 3, 1, FinishReason.LENGTH),
        (3, 3, 3, FinishReason.LENGTH),
        (4, 3, 4, FinishReason.LENGTH),
        (5, 3, 4, None),
        (2, 0, 1, None),
    ],
)
def test_length_limit(
    by_params: bool, room: int, accepted: int, committed: int, finish: FinishReason | None
) -> None:
    limit = 1 + room  # the token after the prompt counts
    queue = RequestQueue(1, 100 if by_params else 3 + limit, [STOP])
    request = make(max_new_tokens=limit if by_params else 99)
    start(queue, request)
    assert len(one_round(queue, [4, 5, 6], accepted, 8).token_ids) == committed
    assert request.rounds == [RoundRecord(3, 3, min(accepted, committed), committed)]
    assert request.finish is finish


def test_a_stop_token_as_the_last_allowed_one_is_a_stop() -> None:
    queue = RequestQueue(1, 100, [STOP])
    request = make(max_new_tokens=3)
    start(queue, request)
    one_round(queue, [4, STOP], 2, 8)
    assert request.finish is FinishReason.STOP


def test_a_stop_token_behind_the_limit_is_none() -> None:
    queue = RequestQueue(1, 100, [STOP])
    request = make(max_new_tokens=2)
    start(queue, request)
    one_round(queue, [4, STOP], 2, 8)
    assert (request.finish, request.output_ids) == (FinishReason.LENGTH, [9, 4])
    assert request.rounds == [RoundRecord(2, 2, 1, 1)]


def test_requests_end_at_their_first_token() -> None:
    queue = RequestQueue(2, 100, [STOP])
    short, stopped = make(1, max_new_tokens=1), make(2)
    start(queue, short, stopped, token=STOP)
    assert (short.finish, stopped.finish) == (FinishReason.STOP, FinishReason.STOP)
    assert not queue
    assert short.rounds == []


def test_cancel() -> None:
    queue = RequestQueue(1, 100)
    running, waiting, finished = make(1), make(2), make(3, max_new_tokens=1)
    start(queue, finished)
    queue.submit(running)
    queue.submit(waiting)
    queue.next_batch()
    for request in (running, waiting, finished, running):
        queue.cancel(request)
    assert [r.finish for r in (running, waiting, finished)] == [
        FinishReason.CANCELLED,
        FinishReason.CANCELLED,
        FinishReason.LENGTH,
    ]
    assert not queue
    assert len(queue.slots) == 1


@given(st.data())
def test_any_order_of_operations(data: st.DataObject) -> None:
    slots = data.draw(st.integers(1, 4), "slots")
    queue = RequestQueue(
        slots,
        12,
        [STOP],
        prefill_rows=data.draw(st.integers(1, 12), "rows"),
        cache_len=data.draw(st.integers(12, 12 * slots), "cache"),
        draft_len=4,
    )
    requests: list[Request] = []
    shadow: dict[int, list[int]] = {}  # what each text should be
    for _ in range(data.draw(st.integers(1, 30), "operations")):
        action = data.draw(st.sampled_from(["submit", "step", "step", "step", "cancel"]))
        if action == "submit":
            request = make(
                len(requests),
                data.draw(st.integers(1, 11)),
                max_new_tokens=data.draw(st.integers(1, 9)),
            )
            requests.append(request)
            queue.submit(request)
        elif action == "cancel" and requests:
            queue.cancel(data.draw(st.sampled_from(requests)))
        elif action == "step":
            _random_step(data, queue, shadow)
        held = [request.slot for request in requests if request.slot is not None]
        assert len(held) == len(set(held)) == queue.running == slots - len(queue.slots)
        assert all(0 <= slot < slots for slot in held)
        open_ = [request for request in requests if request.finish is None]
        places = [request.slot is not None for request in open_]
        assert places == sorted(places, reverse=True), "nobody waits while a later one runs"
    for _ in range(1000):
        if not queue:
            break
        _random_step(data, queue, shadow)
    assert all(request.finish is not None for request in requests), "nobody waits for ever"
    assert len(queue.slots) == slots
    for request in requests:
        assert request.output_ids == shadow.get(request.id, [])
        limit = min(request.params.max_new_tokens, 12 - len(request.prompt_ids))
        assert len(request.output_ids) <= limit
        assert STOP not in request.output_ids[:-1]
        assert sum(r.committed for r in request.rounds) == max(len(request.output_ids) - 1, 0)
        if request.finish is FinishReason.LENGTH:
            assert len(request.output_ids) == limit
        if request.finish is FinishReason.STOP:
            assert request.output_ids[-1] == STOP


def _random_step(data: st.DataObject, queue: RequestQueue, shadow: dict[int, list[int]]) -> None:
    """The next batch within its limits, and a verdict of random tokens, among them stop tokens."""
    oldest = next(iter(queue._running.values()), None)
    batch = queue.next_batch()
    assert queue.held <= queue.cache_len
    assert batch.prefill_rows <= queue.prefill_rows
    if oldest is not None:
        moves = [*batch.decode, *(chunk.request for chunk in batch.prefill)]
        assert oldest in moves, "whoever came first always moves"
    for request in batch.decode:
        assert request.cached == request.anchor_pos
    for chunk in batch.prefill:
        assert (chunk.start, chunk.rows > 0) == (chunk.request.cached, True)
        assert chunk.end <= chunk.request.context_len
    token = st.integers(1, 5)
    K = data.draw(st.integers(0, 4), "K")
    rows = [data.draw(st.lists(token, min_size=K, max_size=K)) for _ in batch.decode]
    lengths = tuple(data.draw(st.integers(0, K)) for _ in rows)
    accepted = [data.draw(st.integers(0, length)) for length in lengths]
    drawn = [data.draw(token) for _ in rows]
    starting = batch.starting
    first = [data.draw(token) for _ in starting]
    assert [r.slot for r in batch.decode] == sorted(r.slot or 0 for r in batch.decode)
    texts = {request.id: [t] for request, t in zip(starting, first, strict=True)}
    for request, ids, n, t in zip(batch.decode, rows, accepted, drawn, strict=True):
        texts[request.id] = [*ids[:n], t]
    layout = StepLayout.build(batch, draft(*rows) if K else None, lengths)
    given = map(Result, [0] * len(first) + accepted, first + drawn)
    results = [next(given) if span.logits else Result() for span in layout.spans]
    outputs = queue.commit(layout, results)
    assert [output.request for output in outputs] == [*starting, *batch.decode]
    for output in outputs:
        request = output.request
        assert len(output.token_ids) == len(output.kinds) >= 1
        assert output.token_ids == texts[request.id][: len(output.token_ids)]
        assert output.finished is (request.finish is not None)
        if not output.finished:
            assert output.token_ids == texts[request.id]
        shadow.setdefault(request.id, []).extend(output.token_ids)


def test_the_engine_s_bookkeeping_works_without_torch() -> None:
    code = (
        "import sys, dspark.engine.queue, dspark.engine.scheduler, dspark.engine.stats\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
