"""The engine for asyncio when requests or the whole engine fail, and when it is stopped."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from dspark.core import FinishReason, Request, StepOutput
from dspark.engine.async_engine import AsyncEngine
from dspark.errors import EngineError
from staged import PARAMS, A, B, C, D, StagedEngine, plain, read, run

# ---- failures ----------------------------------------------------------------------------------


def error_with(*requests: int) -> EngineError:
    error = EngineError("no finite largest value")
    error.requests = requests
    return error


async def outcomes(engine: AsyncEngine, *prompts: list[int]) -> list[Any]:
    """What readers of all prompts at once get: tokens or an exception."""
    streams = [engine.stream(prompt, PARAMS) for prompt in prompts]
    engine.start()
    return await asyncio.gather(*map(read, streams), return_exceptions=True)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_culprit_fails_alone(named: bool, place: int) -> None:
    poison, prompts = D, [A, B, C]
    prompts[place] = poison
    if not named and place < 2:
        prompts = prompts[: place + 1]  # the latest running one is taken for it
    texts = plain(*prompts)
    raised: list[EngineError] = []

    def fault(running: Sequence[Request]) -> None:
        ids = [request.id for request in running if request.prompt_ids == poison]
        if ids:
            raised.append(error_with(*(ids if named else [])))
            raise raised[-1]

    async def main() -> None:
        inner = StagedEngine(slots=3)
        inner.fault = fault
        engine = AsyncEngine(inner)
        said = await outcomes(engine, *prompts)
        assert said[place] is raised[0]
        assert len(raised) == 1
        said[place] = texts[place]
        assert said == texts
        assert engine.healthy
        assert [await read(engine.stream(B, PARAMS))] == plain(B)
        assert inner.is_free()
        await engine.stop()

    run(main())


@pytest.mark.parametrize("named", [True, False])
def test_failures_in_a_row(named: bool, caplog: pytest.LogCaptureFixture) -> None:
    def fault(running: Sequence[Request]) -> None:
        if running[0].prompt_ids == D:
            raise error_with(running[0].id if named else 10_000)  # or one it does not know

    async def main() -> None:
        inner = StagedEngine(slots=1)
        inner.fault = fault
        engine = AsyncEngine(inner)
        said = await outcomes(engine, D, D, A, D, D, B)
        assert [said[2], said[5]] == plain(A, B)  # A's step went well between
        assert all(isinstance(said[n], EngineError) for n in (0, 1, 3, 4))
        assert engine.healthy
        said = await outcomes(engine, D, D, D, A)
        if named:
            assert engine.healthy
            assert said[3] == plain(A)[0]
        else:
            assert not engine.healthy
            assert [str(error).split(" (")[0] for error in said] == [
                *["no finite largest value"] * 2,
                *["The engine failed"] * 2,
            ]
            text = "EngineError: 3 steps in a row failed (found: no finite largest value)"
            assert engine.failure == text
        await engine.stop()

    run(main())
    assert ("The engine failed" in caplog.text) is not named


@pytest.mark.parametrize("error", [ValueError("two\nlines"), KeyboardInterrupt("two lines")])
def test_a_foreign_exception_ends_the_engine(error: BaseException) -> None:
    async def main() -> None:
        inner = StagedEngine(slots=1, permits=1)
        engine = AsyncEngine(inner)
        streams = [engine.stream(prompt, PARAMS) for prompt in (A, B)]
        engine.start()
        await anext(streams[0])

        def fault(running: Sequence[Request]) -> None:
            raise error

        inner.fault = fault
        inner.allow()
        late = engine.stream(C, PARAMS)
        for stream in (*streams, late):
            with pytest.raises(EngineError, match=r"The engine failed .*two lines"):
                await read(stream)
            assert [output async for output in stream] == []
        assert not engine.healthy
        assert engine.failure == f"{type(error).__name__}: two lines"
        for call in (lambda: engine.stream(A), engine.start):
            with pytest.raises(EngineError, match="The engine failed"):
                call()
        with pytest.raises(EngineError):
            await engine.answer(A)
        assert (engine.waiting, engine.running) == (0, 0)
        await engine.stop()

    run(main())


def test_on_step_sees_all_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[StepOutput] = []

    def on_step(outputs: list[StepOutput]) -> None:
        assert threading.current_thread().name == "dspark-engine"
        seen.extend(outputs)
        raise ValueError("metrics")

    async def main() -> list[Any]:
        async with AsyncEngine(StagedEngine(), on_step=on_step) as engine:
            said = await outcomes(engine, A, B)
            assert engine.healthy
            return said

    with caplog.at_level(logging.ERROR, "dspark.engine"):
        assert run(main()) == plain(A, B)
    assert sum(len(output.token_ids) for output in seen) == 40
    assert [record.name for record in caplog.records] == ["dspark.engine"]


# ---- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grace_s", [0.0, 1e6])
def test_stop(grace_s: float) -> None:
    async def main() -> None:
        inner = StagedEngine(slots=1, permits=1)
        engine = AsyncEngine(inner)
        engine.start()
        engine.start()  # nothing happens
        running, waiting = engine.stream(A, PARAMS), engine.stream(B, PARAMS)
        said = (await anext(running)).token_ids
        stops = [asyncio.ensure_future(engine.stop(grace_s)) for _ in range(2)]
        await asyncio.sleep(0)  # until both have asked
        with pytest.raises(EngineError, match="stopped"):
            engine.stream(C)
        inner.allow()
        rest = [output async for output in running]
        said = said + [token for output in rest for token in output.token_ids]
        last = [output async for output in waiting]
        await asyncio.gather(*stops)
        await engine.stop()
        with pytest.raises(EngineError, match="stopped"):
            engine.start()
        assert [(o.token_ids, o.finished) for o in last] == [([], True)]
        assert last[0].request.finish is FinishReason.CANCELLED
        request = rest[-1].request
        assert rest[-1].finished
        if grace_s:
            assert [said] == plain(A)
            assert request.finish is FinishReason.LENGTH
        else:
            assert rest[-1].token_ids == []
            assert request.finish is FinishReason.CANCELLED
            assert said == request.output_ids == plain(A)[0][: len(said)]
            assert len(said) <= 2
        assert engine.healthy
        assert inner.is_free()

    run(main())


def test_a_second_stop_shortens_the_first() -> None:
    async def main() -> None:
        inner = StagedEngine(slots=1, permits=1)
        engine = AsyncEngine(inner)
        engine.start()
        stream = engine.stream(A, PARAMS)
        await anext(stream)
        patient = asyncio.ensure_future(engine.stop(1e6))
        await asyncio.sleep(0)
        hasty = asyncio.ensure_future(engine.stop())
        await asyncio.sleep(0)
        inner.allow()
        await asyncio.gather(patient, hasty)
        assert [output async for output in stream][-1].request.finish is FinishReason.CANCELLED

    run(main())


def test_leaving_the_context_ends_streams() -> None:
    async def main() -> None:
        inner = StagedEngine(permits=0)
        async with AsyncEngine(inner) as engine:
            stream = engine.stream(A, PARAMS)
            inner.allow()
        last = [output async for output in stream][-1]
        assert last.finished

    run(main())
