"""`AsyncLLM`: the same as `LLM` for asyncio, many callers at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, Literal, overload

from dspark.api.llm import LLM, check_one
from dspark.api.outputs import Pieces, RequestOutput, TextPiece
from dspark.api.prompts import (
    Asked,
    Conversation,
    Params,
    Prompt,
    Prompts,
    asked_conversations,
    asked_prompts,
)
from dspark.core import SamplingParams
from dspark.engine.async_engine import AsyncEngine
from dspark.engine.stream import Stream
from dspark.fetching.known import DEFAULT_TARGET
from dspark.targets.detokenize import TokenTexts
from dspark.targets.target import Target


class AsyncLLM:
    """A target that answers many asyncio callers at a time, on a thread of its own.

    Use it in `async with`, or call `stop` at the end.

    Args:
        target: as for `LLM`.
        max_waiting: requests that may wait for a slot; more are refused.
        options: the other arguments of `LLM`.

    Attributes:
        target: the loaded target.

    Raises:
        CheckpointError, IncompatibleDrafterError, ConfigError: as for `LLM`.
    """

    def __init__(
        self,
        target: str | Path | Target = DEFAULT_TARGET,
        *,
        max_waiting: int = 256,
        **options: Any,
    ) -> None:
        engine = LLM(target, **options).engine
        self.target = engine.target
        self._engine = AsyncEngine(engine, max_waiting=max_waiting)
        self._texts = TokenTexts(self.target.tokenizer)

    async def __aenter__(self) -> AsyncLLM:
        self._engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no new prompts, end those under way, and wait for the thread to end.

        Args:
            grace_s: seconds that those which have started may go on.
        """
        await self._engine.stop(grace_s)

    @overload
    def generate(
        self, prompts: Prompt, params: SamplingParams | None = None, *, raw: bool = False
    ) -> Awaitable[RequestOutput]: ...
    @overload
    def generate(
        self, prompts: Prompts, params: Params = None, *, raw: bool = False
    ) -> Awaitable[list[RequestOutput]]: ...
    @overload
    def generate(
        self,
        prompts: Prompt,
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        stream: Literal[True],
    ) -> AsyncIterator[TextPiece]: ...
    def generate(
        self, prompts: Any, params: Any = None, *, raw: bool = False, stream: bool = False
    ) -> Any:
        """Complete one prompt or several, which are in line when this returns.

        Args:
            prompts, params, raw, stream: as for `LLM.generate`.

        Returns:
            An awaitable of what `LLM.generate` gives; with `stream` an asynchronous iterator over
            `TextPiece`. To leave its loop ends the request.

        Raises:
            RequestError: a prompt cannot be served, and none runs.
            QueueFullError: too many requests wait.
            EngineError: the engine was stopped, has failed, or cannot go on with this request.
        """
        return self._complete(asked_prompts(self.target, prompts, params, raw), stream)

    @overload
    def chat(
        self, messages: Conversation, params: SamplingParams | None = None, *, tools: Any = None
    ) -> Awaitable[RequestOutput]: ...
    @overload
    def chat(
        self, messages: list[Conversation], params: Params = None, *, tools: Any = None
    ) -> Awaitable[list[RequestOutput]]: ...
    @overload
    def chat(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        *,
        tools: Any = None,
        stream: Literal[True],
    ) -> AsyncIterator[TextPiece]: ...
    def chat(
        self, messages: Any, params: Any = None, *, tools: Any = None, stream: bool = False
    ) -> Any:
        """Complete one conversation or several; results and errors as for `generate`.

        Args:
            messages, params, tools, stream: as for `LLM.chat`.
        """
        return self._complete(asked_conversations(self.target, messages, params, tools), stream)

    def _complete(self, asked: Asked, stream: bool) -> Any:
        if stream:
            check_one(asked)
        self._engine.start()
        streams: list[Stream] = []
        try:
            for number, (ids, params) in enumerate(asked.prompts):
                with asked.naming(number):
                    streams.append(self._engine.stream(ids, params))
        except BaseException:
            _cancel(streams)
            raise
        if stream:
            return self._pieces(streams[0])
        return self._outputs(streams, asked.one)

    async def _pieces(self, stream: Stream) -> AsyncIterator[TextPiece]:
        pieces = Pieces(self.target, self._texts)
        try:
            async for step in stream:
                yield pieces.take(step)
        finally:
            stream.cancel()

    async def _outputs(self, streams: list[Stream], one: bool) -> Any:
        async def output(stream: Stream) -> RequestOutput:
            async for piece in self._pieces(stream):
                last = piece.output
            assert last is not None
            return last

        try:
            outputs = await asyncio.gather(*map(output, streams))
        finally:
            _cancel(streams)
        return outputs[0] if one else outputs


def _cancel(streams: list[Stream]) -> None:
    for stream in streams:
        stream.cancel()
