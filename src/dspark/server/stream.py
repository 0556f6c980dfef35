"""Answers as server-sent events, and requests that end when their client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from dspark.core import TokenKind
from dspark.server.answer import Piece
from dspark.server.completion import Completion
from dspark.server.errors import ApiError
from dspark.server.text import Token
from dspark.server.wire import Wire, dspark_of

DONE = "data: [DONE]\n\n"

# json.dumps would make such an encoder for every event.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class EventStream(StreamingResponse):
    """A completion as events; it ends with its client, and its completion with it."""

    media_type = "text/event-stream"

    def __init__(
        self, completion: Completion, wire: Wire, *, usage: bool, running: bool = False
    ) -> None:
        self._completion = completion
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events(completion, wire, usage=usage, running=running), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._completion.close()


async def events(
    completion: Completion, wire: Wire, *, usage: bool, running: bool = False
) -> AsyncIterator[str]:
    """The events of a completion: opening, pieces, endings, usage, done.

    Events that are there at the same time come in one string, which is one write to the client.

    Args:
        usage: end with a chunk that carries the usage; the others carry null.
        running: the others carry the usage so far.
    """
    nothing: dict[str, Any] = {"usage": None} if usage else {}
    texts = None if running else _TextEvents(wire, nothing)
    unfinished, last = len(completion.answers), ""

    def more() -> dict[str, Any]:
        return {"usage": completion.usage()} if running else nothing

    try:
        for answer in completion.answers:
            opening = wire.opening(answer.index)
            if opening is not None:
                yield event(wire.chunk([opening], **more()))
        async with aclosing(completion.pieces()) as pieces:
            async for piece in pieces:
                said = _said(piece, wire, texts, more())
                unfinished -= piece.finish is not None
                if not unfinished:
                    last = said
                elif said:
                    yield said
        if usage:
            last += event(wire.chunk([], usage=completion.usage()))
    except ApiError as error:
        last += f"event: error\n{event(error.body())}"
    yield last + DONE


def _said(piece: Piece, wire: Wire, texts: _TextEvents | None, more: dict[str, Any]) -> str:
    """The events of a piece, with `more` in each, from a pattern where there is one."""
    said = ""
    told = {"dspark": dspark_of(piece)} if wire.tokens and piece.made else {}
    if told or (piece.shown and (wire.logprobs or texts is None)):
        said = event(wire.chunk([wire.delta(piece)], **more, **told))
    elif piece.shown and texts is not None:
        said = texts.event(piece)
    if piece.finish is not None:
        said += event(wire.chunk([wire.closing(piece)], **more))
    return said


class _TextEvents:
    """Events of one stream that add text and nothing else: only the text is new in each."""

    def __init__(self, wire: Wire, more: dict[str, Any]) -> None:
        self._wire, self._more = wire, more
        self._around: dict[int, tuple[str, str]] = {}  # what stands around the text, by answer

    def event(self, piece: Piece) -> str:
        """What `event` makes of the piece's chunk."""
        around = self._around.get(piece.index)
        if around is None:
            around = self._around[piece.index] = self._split(piece.index)
        return f"{around[0]}{_encode(piece.text)}{around[1]}"

    def _split(self, index: int) -> tuple[str, str]:
        mark = uuid4().hex
        empty = Piece(index, [], [Token(0, mark, TokenKind.PLAIN)], None, None)
        before, _, after = event(
            self._wire.chunk([self._wire.delta(empty)], **self._more)
        ).partition(_encode(mark))
        return before, after


def event(content: dict[str, Any]) -> str:
    """One event; JSON has no line breaks of its own."""
    return f"data: {_encode(content)}\n\n"


async def whole(completion: Completion, wire: Wire, request: Request) -> Response:
    """The complete answer; if the client goes away meanwhile, the work ends.

    Raises:
        ApiError: as `Completion.pieces`.
    """
    work = asyncio.create_task(_finished(completion))
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)  # nobody is there to read it
        work.result()
        return JSONResponse(wire.whole(completion.answers, completion.usage()))
    finally:
        work.cancel()
        gone.cancel()
        await completion.close()


async def _finished(completion: Completion) -> None:
    async with aclosing(completion.pieces()) as pieces:
        async for _ in pieces:
            pass


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
