"""The request queue: who waits, who runs, and what a step adds to each text."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from dspark.core import (
    Batch,
    Chunk,
    FinishReason,
    Request,
    Result,
    Role,
    RoundRecord,
    Span,
    StepLayout,
    StepOutput,
    TokenKind,
)
from dspark.engine.slots import SlotPool

PREFILL_ROWS = 512  # a step with as many prompt rows takes about a third of a second on two cores


class RequestQueue:
    """Admits requests first come, first served, and commits their tokens.

    All running requests together hold at most ``cache_len`` positions of the caches. Each counts
    with what it may write in the coming step. When texts have grown past that, the request that
    came last gives its place up, waits first in line, and runs its text through the target again
    later: what it has said stays, and so does its way of drawing.

    Args:
        slots: requests that run at the same time.
        max_len: longest text, prompt included, in tokens.
        stop_ids: tokens that end an answer.
        prefill_rows: prompt tokens run in one step; longer prompts take several.
        cache_len: positions held by all requests together; None is room for every slot.
        draft_len: draft tokens a round.
        on_release: is told of every slot that was given back.

    Attributes:
        preemptions: how often a request gave its place up.
    """

    def __init__(
        self,
        slots: int,
        max_len: int,
        stop_ids: Iterable[int] = (),
        prefill_rows: int = PREFILL_ROWS,
        cache_len: int | None = None,
        draft_len: int = 0,
        on_release: Callable[[int], None] = lambda slot: None,
    ) -> None:
        self.cache_len = slots * max_len if cache_len is None else cache_len
        assert 2 <= max_len <= self.cache_len
        assert prefill_rows >= 1
        self.slots = SlotPool(slots)
        self.max_len, self.prefill_rows = max_len, prefill_rows
        self.stop_ids = frozenset(stop_ids)
        self.preemptions = 0
        self._margin, self._on_release = 1 + draft_len, on_release  # anchor and drafts
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}  # by slot, in order of arrival

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return len(self._running)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, request: Request) -> None:
        """Put a request, whose prompt is shorter than ``max_len``, at the end of the line."""
        assert 0 < len(request.prompt_ids) < self.max_len
        assert request.slot is None
        assert request.finish is None
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request wherever it is; what it has said stays. Nothing happens to a finished one.

        Not for use from another thread while a step runs.
        """
        if request.slot is not None:
            self._release(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        if request.finish is None:
            request.finish = FinishReason.CANCELLED

    def next_batch(self) -> Batch:
        """All running requests, and as many waiting ones as slots and cache allow.

        A batch that was never committed comes again: a step that failed can be repeated.
        """
        self._make_room()
        self._admit()
        left, prefill = self.prefill_rows, []
        for request in self._running.values():
            rows = min(request.context_len - request.cached, left)
            if rows:
                prefill.append(Chunk(request, request.cached, request.cached + rows))
                left -= rows
        by_slot = [self._running[slot] for slot in sorted(self._running)]
        return Batch(prefill, [request for request in by_slot if request.ready])

    def positions(self, request: Request, steps: int = 1) -> int:
        """Cache positions that a request may hold after so many more steps."""
        return min(request.context_len + steps * self._margin, self.max_len)

    @property
    def held(self) -> int:
        """Cache positions of all running requests, the coming step included."""
        return sum(map(self.positions, self._running.values()))

    def _make_room(self) -> None:
        """Send the latest arrivals back to the head of the line until the others fit."""
        held = self.held
        while held > self.cache_len:
            request = next(reversed(self._running.values()))
            held -= self.positions(request)
            self._release(request)
            self._waiting.appendleft(request)
            self.preemptions += 1

    def _admit(self) -> None:
        """Give slots to waiting requests in order, while all have room for another round."""
        ahead = sum(self.positions(request, 2) for request in self._running.values())
        while self._waiting and len(self.slots):
            need = self.positions(self._waiting[0])
            if ahead + need > self.cache_len and self._running:
                break
            request = self._waiting.popleft()
            request.slot = self.slots.acquire()
            self._running[request.slot] = request
            ahead += self.positions(request, 2)

    def commit(self, layout: StepLayout, results: Sequence[Result]) -> list[StepOutput]:
        """Add what the results allow to each text, cutting at stop tokens and length limits.

        The cut comes after the test, so it cannot bend the distribution (docs/algorithms.md,
        "Why nothing is lost").

        Returns:
            What each request got: those whose answers start, plain, drafted ones.
        """
        outputs = []
        for span, result in zip(layout.spans, results, strict=True):
            if span.role in (Role.CONTEXT, Role.FIRST):
                span.request.cached = span.start + len(span.ids)
            if result.next_id is not None:
                outputs.append(self._commit(span, result, result.next_id))
        return outputs

    def _commit(self, span: Span, result: Result, next_id: int) -> StepOutput:
        request, accepted = span.request, result.accepted
        drawn = TokenKind.DRAWN if span.verified else TokenKind.PLAIN
        kinds = [TokenKind.ACCEPTED] * accepted + [drawn]
        ids = self._extend(request, [*span.draft_ids[:accepted], next_id])
        record = None
        if span.role is not Role.FIRST:
            record = RoundRecord(
                span.drafted,
                span.verified,
                min(accepted, len(ids)),
                len(ids),
                request.finish is FinishReason.STOP,
                span.confidence,
            )
            request.rounds.append(record)
            request.round += 1
        told = None if result.logprobs is None else result.logprobs[: len(ids)]
        finished = request.finish is not None
        return StepOutput(request, ids, kinds[: len(ids)], finished, record, told)

    def _extend(self, request: Request, ids: list[int]) -> list[int]:
        """Add tokens up to the first stop token, then up to the length limit; returns them."""
        finish = None
        if not request.params.ignore_stop and not self.stop_ids.isdisjoint(ids):
            first = next(i for i, token in enumerate(ids) if token in self.stop_ids)
            ids, finish = ids[: first + 1], FinishReason.STOP
        room = self.room(request)
        if len(ids) > room or (len(ids) == room and finish is None):
            ids, finish = ids[:room], FinishReason.LENGTH
        request.output_ids.extend(ids)
        request.cached = request.anchor_pos
        request.finish = finish
        if finish is not None:
            self._release(request)
        return ids

    def room(self, request: Request) -> int:
        """Tokens that may still be added to a request's text."""
        limit = min(request.params.max_new_tokens, self.max_len - len(request.prompt_ids))
        return limit - len(request.output_ids)

    def _release(self, request: Request) -> None:
        assert request.slot is not None
        found = self._running.pop(request.slot)
        assert found is request
        self.slots.release(request.slot)
        self._on_release(request.slot)
        request.slot, request.cached = None, 0
