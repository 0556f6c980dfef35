"""Streams that call instead of being read: the same events, and none after leaving."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence

from dspark.core import FinishReason, Request, StepOutput
from dspark.engine.async_engine import AsyncEngine
from dspark.engine.stream import Event, Stream
from dspark.errors import EngineError
from staged import PARAMS, A, B, C, StagedEngine, plain, read, run


class Listener:
    """Gathers a stream's events.

    Attributes:
        heard: so far.
        first, last: done when the first and the last event have come.
    """

    def __init__(self, stream: Stream) -> None:
        self.heard: list[Event] = []
        self.first, self.last = asyncio.Event(), asyncio.Event()
        stream.listen(self._hear)

    def _hear(self, event: Event) -> None:
        self.heard.append(event)
        self.first.set()
        if not isinstance(event, StepOutput) or event.finished:
            self.last.set()

    async def tokens(self) -> list[int]:
        """All tokens, once the one finished output has come."""
        await self.last.wait()
        outputs = [event for event in self.heard if isinstance(event, StepOutput)]
        assert [o.finished for o in outputs] == [False] * (len(self.heard) - 1) + [True]
        return [token for output in outputs for token in output.token_ids]


def test_listeners_hear_what_readers_read() -> None:
    async def main() -> None:
        async with AsyncEngine(StagedEngine(slots=2)) as engine:
            listeners = [Listener(engine.stream(prompt, PARAMS)) for prompt in (A, B)]
            assert [await read(engine.stream(C, PARAMS))] == plain(C)
            assert [await listener.tokens() for listener in listeners] == plain(A, B)

    run(main())


def test_what_came_before_is_heard_first() -> None:
    async def main() -> None:
        inner = StagedEngine(slots=2, permits=3)
        async with AsyncEngine(inner) as engine:
            late, beside = engine.stream(A, PARAMS), engine.stream(B, PARAMS)
            for _ in range(3):
                await anext(beside)
            listener = Listener(late)
            assert len(listener.heard) == 3
            inner.allow()
            assert [await listener.tokens()] == plain(A)

    run(main())


def test_an_answer_that_is_over_is_heard_at_once() -> None:
    async def main() -> None:
        async with AsyncEngine(StagedEngine(slots=1)) as engine:
            late = engine.stream(A, PARAMS)
            await read(engine.stream(B, PARAMS))
            listener = Listener(late)
            assert listener.last.is_set()
            assert [await listener.tokens()] == plain(A)

    run(main())


def test_a_listener_need_not_hold_its_stream() -> None:
    async def main() -> None:
        inner = StagedEngine(slots=1, permits=1)
        async with AsyncEngine(inner) as engine:
            listener = Listener(engine.stream(A, PARAMS))
            gc.collect()
            inner.allow()
            assert [await listener.tokens()] == plain(A)

    run(main())


def test_nothing_is_heard_after_leaving() -> None:
    async def main() -> None:
        inner = StagedEngine(slots=1, permits=1)
        async with AsyncEngine(inner) as engine:
            stream = engine.stream(A, PARAMS)
            listener = Listener(stream)
            await listener.first.wait()
            stream.cancel()
            after = engine.stream(B, PARAMS)  # takes the slot that was freed
            inner.allow()
            assert [await read(after)] == plain(B)
            assert len(listener.heard) == 1
            left = inner.requests[0]
            assert left.finish is FinishReason.CANCELLED
            assert len(left.output_ids) <= 2  # the step it saw, and one that was under way
            assert inner.is_free()

    run(main())


def test_leaving_at_the_first_of_several_that_wait() -> None:
    async def main() -> None:
        inner = StagedEngine(slots=2, permits=3)
        async with AsyncEngine(inner) as engine:
            stream, beside = engine.stream(A, PARAMS), engine.stream(B, PARAMS)
            for _ in range(3):
                await anext(beside)
            heard: list[Event] = []

            def leave(event: Event) -> None:
                heard.append(event)
                stream.cancel()

            stream.listen(leave)
            inner.allow()
            assert [await read(engine.stream(C, PARAMS))] == plain(C)
            assert len(heard) == 1
            assert inner.requests[0].finish is FinishReason.CANCELLED

    run(main())


def test_a_listener_hears_the_error_that_ends_its_answer() -> None:
    error = EngineError("no finite largest value")
    error.requests = (1,)

    async def main() -> None:
        inner = StagedEngine(slots=1)

        def fault(running: Sequence[Request]) -> None:
            if running[0].prompt_ids == A:
                raise error

        inner.fault = fault
        async with AsyncEngine(inner) as engine:
            listener, other = (Listener(engine.stream(prompt, PARAMS)) for prompt in (A, B))
            await listener.last.wait()
            assert listener.heard == [error]
            assert [await other.tokens()] == plain(B)

    run(main())


def test_a_listener_hears_that_the_engine_stops() -> None:
    async def main() -> None:
        inner = StagedEngine(slots=1, permits=1)
        async with AsyncEngine(inner) as engine:
            listener = Listener(engine.stream(A, PARAMS))
            await listener.first.wait()
            stop = asyncio.ensure_future(engine.stop())
            await asyncio.sleep(0)  # until it has left its command
            inner.allow()
            await stop
            tokens = await listener.tokens()
            assert tokens == plain(A)[0][: len(tokens)]
            assert inner.requests[0].finish is FinishReason.CANCELLED

    run(main())
