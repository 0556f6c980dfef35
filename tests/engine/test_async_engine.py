"""The engine for asyncio: many readers, a full line, and some who leave."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from dspark.core import FinishReason, Request, SamplingParams
from dspark.drafters.drafter import Drafter
from dspark.engine.async_engine import AsyncEngine
from dspark.engine.engine import Engine
from dspark.engine.stream import Stream
from dspark.errors import ConfigError, QueueFullError, RequestError
from dspark.targets.target import Target
from scripted import answer, whole_blocks
from staged import PARAMS, A, B, C, D, StagedEngine, plain, read, run

# ---- texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streams_say_what_generate_says(
    temperature: float, target: Target, drafter: Drafter
) -> None:
    params = SamplingParams(temperature=temperature, seed=5, max_new_tokens=12)
    prompts = [[7 + n] * (1 + n % 4) for n in range(12)]

    async def main() -> list[list[int]]:
        async with AsyncEngine(
            Engine(target, drafter, whole_blocks(drafter), slots=3, max_len=64)
        ) as engine:
            return await asyncio.gather(*(read(engine.stream(p, params)) for p in prompts))

    assert run(main()) == answer(target, drafter, prompts, params, slots=3, max_len=64)


def test_answer_returns_the_finished_request() -> None:
    async def main() -> Request:
        async with AsyncEngine(StagedEngine()) as engine:
            return await engine.answer(A, PARAMS, sample=3)

    request = run(main())
    assert [request.output_ids] == plain(A)
    assert (request.finish, request.sample) == (FinishReason.LENGTH, 3)


def test_two_event_loops_share_an_engine() -> None:
    engine = AsyncEngine(StagedEngine(slots=3))
    said: dict[int, list[list[int]]] = {}

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(read(engine.stream(p, PARAMS)) for p in (A, B, C, D)))

    threads = [
        threading.Thread(target=lambda n=n: said.update({n: run(main())}), daemon=True)
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    engine.start()
    for thread in threads:
        thread.join(60)
    run(engine.stop())
    assert said == {n: plain(A, B, C, D) for n in range(2)}


def test_a_slow_reader_holds_nobody_up() -> None:
    async def main() -> list[list[int]]:
        async with AsyncEngine(StagedEngine(slots=1)) as engine:
            slow = engine.stream(A, PARAMS)
            first = (await anext(slow)).token_ids
            others = [await read(engine.stream(prompt, PARAMS)) for prompt in (B, C)]
            return [[*first, *[t for o in [o async for o in slow] for t in o.token_ids]], *others]

    assert run(main()) == plain(A, B, C)


def test_a_step_wakes_an_event_loop_once() -> None:
    """However many of its readers get something; another loop has a call of its own."""
    calls: Counter[int] = Counter()

    async def main(engine: AsyncEngine, n: int, prompts: list[list[int]]) -> list[list[int]]:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **more: Any) -> Any:
            calls[n] += threading.current_thread().name == "dspark-engine"
            return wake(*args, **more)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        streams = [engine.stream(prompt, PARAMS) for prompt in prompts]
        ready.wait(60)
        engine.start()
        return await asyncio.gather(*map(read, streams))

    engine, ready = AsyncEngine(StagedEngine(slots=5)), threading.Barrier(2)
    groups, said = [[A, B, C], [D, A]], {}
    threads = [
        threading.Thread(
            target=lambda n=n: said.update({n: run(main(engine, n, groups[n]))}), daemon=True
        )
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    run(engine.stop())
    assert said == {n: plain(*prompts) for n, prompts in enumerate(groups)}
    assert calls == {n: PARAMS.max_new_tokens for n in range(2)}, "all of them run in step"


# ---- the door ----------------------------------------------------------------------------------


def test_a_full_line_is_refused() -> None:
    async def main() -> None:
        inner = StagedEngine(slots=1, permits=0)
        engine = AsyncEngine(inner, max_waiting=2)
        streams = [engine.stream(prompt, PARAMS) for prompt in (A, B)]
        assert (engine.waiting, engine.running) == (2, 0)
        with pytest.raises(QueueFullError, match=r"Too many requests are waiting \(found: 2\)"):
            engine.stream(C)  # both are in the inbox
        engine.start()
        inner.allow(2)
        for _ in range(2):
            await anext(streams[0])
        streams.append(engine.stream(C, PARAMS))
        assert (engine.waiting, engine.running) == (2, 1)
        with pytest.raises(QueueFullError):
            engine.stream(D)  # one of them is in the engine's line
        with pytest.raises(QueueFullError):
            await engine.answer(D)
        inner.allow()
        assert [await read(stream) for stream in streams[1:]] == plain(B, C)
        assert (engine.waiting, engine.running) == (0, 0)
        await engine.stop()

    assert issubclass(QueueFullError, RequestError)
    run(main())


def test_what_cannot_be_served_is_refused_at_the_call() -> None:
    async def main() -> None:
        engine = AsyncEngine(StagedEngine())
        for prompt in ([], [99], [1] * 60):
            with pytest.raises(RequestError):
                engine.stream(prompt)
        assert engine.waiting == 0
        await engine.stop()

    run(main())
    with pytest.raises(ConfigError, match="max_waiting"):
        AsyncEngine(StagedEngine(), max_waiting=0)


# ---- leaving -----------------------------------------------------------------------------------


async def close(stream: Stream) -> None:
    await anext(stream)
    await stream.aclose()


async def leave_the_loop(stream: Stream) -> None:
    async for _ in stream:
        break


async def raise_in_the_loop(stream: Stream) -> None:
    with suppress(ZeroDivisionError):
        async for output in stream:
            raise ZeroDivisionError(output)


async def be_cancelled(stream: Stream) -> None:
    await anext(stream)
    task = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)  # until it waits
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def be_closed_while_waiting(stream: Stream) -> None:
    await anext(stream)
    task = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await stream.aclose()
    task.add_done_callback(lambda task: task.result())  # it ends, see the test below


LEAVE = [close, leave_the_loop, raise_in_the_loop, be_cancelled, be_closed_while_waiting]


@pytest.mark.parametrize("leave", LEAVE, ids=lambda leave: leave.__name__)
def test_leaving_cancels_within_a_step(leave: Callable[[Stream], Any]) -> None:
    async def main() -> None:
        inner = StagedEngine(slots=2, permits=1)
        async with AsyncEngine(inner) as engine:
            kept = engine.stream(B, PARAMS)
            await leave(engine.stream(A, PARAMS))
            after = engine.stream(C, PARAMS)  # takes the slot that was freed
            inner.allow()
            assert [await read(kept), await read(after)] == plain(B, C)
            left = inner.requests[1]
            assert left.finish is FinishReason.CANCELLED
            assert len(left.output_ids) <= 2  # the step it saw, and one that was under way
            assert inner.is_free()

    run(main())


def test_leaving_before_the_first_step() -> None:
    async def main() -> None:
        engine = AsyncEngine(inner := StagedEngine(slots=1))
        closed, dropped = engine.stream(A, PARAMS), engine.stream(B, PARAMS)
        await closed.aclose()
        await closed.aclose()
        del dropped
        engine.start()
        assert [await read(engine.stream(C, PARAMS))] == plain(C)
        left = inner.requests[:2]
        assert [(r.finish, r.output_ids) for r in left] == [(FinishReason.CANCELLED, [])] * 2
        assert [output async for output in closed] == []
        assert inner.is_free()
        await engine.stop()

    run(main())


def test_a_waiting_reader_hears_of_aclose() -> None:
    async def main() -> None:
        engine = AsyncEngine(StagedEngine())
        stream = engine.stream(A)
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        engine.start()
        last = await reader
        assert (last.finished, last.token_ids) == (True, [])
        assert last.request.finish is FinishReason.CANCELLED
        await engine.stop()

    run(main())


def test_a_closed_event_loop_is_a_caller_who_left() -> None:
    inner = StagedEngine(slots=1, permits=1)
    engine = AsyncEngine(inner)

    async def read_one() -> tuple[Stream, Request]:
        engine.start()
        stream = engine.stream(A, PARAMS)
        return stream, (await anext(stream)).request

    async def another() -> list[int]:
        inner.allow()
        return await read(engine.stream(B, PARAMS))

    stream, request = run(read_one())
    assert [run(another())] == plain(B)
    assert request.finish is FinishReason.CANCELLED
    assert len(request.output_ids) <= 2
    assert inner.is_free()
    run(engine.stop())
    del stream


def test_many_come_and_go() -> None:
    draw = random.Random(7)
    jobs = []
    for _ in range(200):
        prompt = [draw.randrange(7) for _ in range(draw.randint(1, 9))]
        params = SamplingParams(max_new_tokens=draw.randint(1, 12))
        jobs.append((prompt, params, draw.choice([None, None, 0, 1, 3]), draw.randrange(40)))
    texts = [plain(prompt, params=params)[0] for prompt, params, *_ in jobs]

    async def job(engine: AsyncEngine, n: int) -> None:
        prompt, params, leave_after, delay = jobs[n]
        for _ in range(delay):
            await asyncio.sleep(0)
        stream, said = engine.stream(prompt, params), []
        for _ in range(100 if leave_after is None else leave_after):
            output = await anext(stream)
            said += output.token_ids
            if output.finished:
                assert said == texts[n]
                assert output.request.finish is FinishReason.LENGTH
                return
        assert leave_after is not None
        assert said == texts[n][:leave_after]
        if n % 2:  # the others are left to the garbage collector
            await stream.aclose()

    async def main() -> None:
        inner = StagedEngine(slots=4)
        async with AsyncEngine(inner) as engine:
            tasks = [asyncio.ensure_future(job(engine, n)) for n in range(len(jobs))]
            for n in range(0, len(jobs), 10):
                await asyncio.sleep(0)
                if jobs[n][2] is None:
                    tasks[n].cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [e for e in done if e and not isinstance(e, asyncio.CancelledError)]
            await engine.answer(A, PARAMS)  # comes after all that the others asked for
            assert inner.is_free()
            assert not engine._tickets

    run(main())
