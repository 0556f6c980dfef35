"""`AsyncLLM`: the completions of `LLM`, for many callers on an event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dspark import LLM, AsyncLLM, SamplingParams
from dspark.errors import EngineError, QueueFullError, RequestError
from tiny import home_with_drafter

TALK = [{"role": "user", "content": "add the rain"}]
SHORT = SamplingParams(max_new_tokens=12)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    home: Path = home_with_drafter(tmp_path_factory.mktemp("home"))
    return LLM(home / "target", drafter=home / "drafter", policy="fixed:2", dtype="float32")


def opened(llm: LLM, **options: int) -> AsyncLLM:
    return AsyncLLM(llm.target, drafter=llm.drafter, policy="fixed:2", max_len=128, **options)


def test_it_gives_what_llm_gives(llm: LLM) -> None:
    async def ask() -> None:
        async with opened(llm) as front:
            assert await front.generate("add the rain", SHORT) == one
            assert await front.generate(["a", "b", "c"], SHORT) == several
            assert await front.chat(TALK, SHORT) == one
            assert await front.chat([TALK, TALK], SHORT) == [one, one]
            pieces = [piece async for piece in front.chat(TALK, SHORT, stream=True)]
            assert "".join(map(str, pieces)) == one.text
            assert pieces[-1].output == one

    one, several = llm.generate("add the rain", SHORT), llm.generate(["a", "b", "c"], SHORT)
    asyncio.run(ask())


def test_many_callers_at_once(llm: LLM) -> None:
    async def ask() -> list[str]:
        async with opened(llm, slots=3) as front:
            outputs = await asyncio.gather(*(front.generate(text, SHORT) for text in texts))
        return [output.text for output in outputs]

    texts = [f"say {n}" for n in range(8)]
    assert asyncio.run(ask()) == [output.text for output in llm.generate(texts, SHORT)]


def test_it_starts_without_a_block(llm: LLM) -> None:
    async def ask() -> str:
        front = opened(llm)
        output = await front.generate("add the rain", SHORT)
        await front.stop()
        with pytest.raises(EngineError, match="stopped"):
            front.generate("add the rain", SHORT)
        return output.text

    assert asyncio.run(ask()) == llm.generate("add the rain", SHORT).text


def test_leaving_a_stream_ends_its_request(llm: LLM) -> None:
    async def ask() -> None:
        endless = SamplingParams(max_new_tokens=100, ignore_stop=True)
        async with opened(llm, slots=1) as front:
            async for _ in front.generate("a", endless, stream=True):
                break
            assert (await front.generate("b", SHORT)).text == llm.generate("b", SHORT).text

    asyncio.run(ask())


def test_wrong_input(llm: LLM) -> None:
    async def ask() -> None:
        async with opened(llm, slots=1, max_waiting=2) as front:
            with pytest.raises(RequestError, match=r"prompts\[1\]: The prompt is empty"):
                front.generate(["a", ""])
            with pytest.raises(RequestError, match="A stream is of one prompt"):
                front.generate(["a", "b"], stream=True)
            with pytest.raises(QueueFullError):
                front.generate(["a"] * 9, SHORT)

    asyncio.run(ask())


def test_stopping_ends_what_runs(llm: LLM) -> None:
    async def ask() -> str:
        endless = SamplingParams(max_new_tokens=100, ignore_stop=True)
        front = opened(llm)
        waiting = asyncio.ensure_future(front.generate("a", endless))
        await asyncio.sleep(0)
        await front.stop()
        return (await waiting).finish_reason

    assert asyncio.run(ask()) in ("cancelled", "length")
