"""Events: cut from a pattern, they are what encoding each chunk anew would give."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.types import Message

from dspark.core import TokenKind
from dspark.server import stream
from dspark.server.answer import Piece
from dspark.server.text import Token
from dspark.server.wire import ChatWire, CompletionWire, Wire
from serving import CHAT, chat, events, text
from serving import TEXT as TEXT_PATH

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


def piece(index: int, *texts: str) -> Piece:
    tokens = [Token(n, text, TokenKind.PLAIN) for n, text in enumerate(texts)]
    return Piece(index, tokens, tokens, None, None)


@pytest.mark.parametrize("kind", [ChatWire, CompletionWire])
@pytest.mark.parametrize("more", [{}, {"usage": None}])
@given(model=TEXTS, said=st.lists(st.tuples(st.integers(0, 3), TEXTS, TEXTS), max_size=5))
def test_a_text_event_is_its_chunk_encoded(
    kind: type[Wire], more: dict[str, Any], model: str, said: list[tuple[int, str, str]]
) -> None:
    wire = kind(model, None, frozenset())
    texts = stream._TextEvents(wire, more)
    for index, *words in said:
        made = piece(index, *words)
        assert texts.event(made) == stream.event(wire.chunk([wire.delta(made)], **more))
        chunk = json.loads(texts.event(made).removeprefix("data: "))
        (choice,) = chunk["choices"]
        assert choice["index"] == index
        assert choice.get("text", choice.get("delta", {}).get("content")) == "".join(words)


@pytest.mark.parametrize(("path", "ask"), [(CHAT, chat), (TEXT_PATH, text)])
def test_every_event_of_a_stream_has_the_same_head(client: TestClient, path: str, ask: Any) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events(client.post(path, json=ask(n=2, max_tokens=20, **options)))
    heads = {(c["id"], c["object"], c["created"], c["model"], *c.keys()) for c in chunks}
    assert len(heads) == 1
    assert list(chunks[0]) == ["id", "object", "created", "model", "choices", "usage"]
    order = [tuple(choice) for chunk in chunks for choice in chunk["choices"]]
    assert len(set(order)) == 1, "every choice has the same fields in the same order"


async def parts(app: FastAPI, body: dict[str, Any]) -> list[str]:
    """What the application sends of a chat's body, part by part."""
    sent: list[str] = []
    asked = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
    scope |= {"query_string": b"", "asgi": {"version": "3.0"}, "http_version": "1.1"}

    async def receive() -> Message:
        if asked:
            return asked.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message.get("body", b"").decode())

    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    return [part for part in sent if part]


@pytest.mark.parametrize("usage", [True, False])
def test_what_comes_last_is_one_write(make: Any, usage: bool) -> None:
    """The last tokens, why they are the last, the usage and the end of the stream."""
    options = {"stream": True, "stream_options": {"include_usage": usage}}
    found = asyncio.run(parts(make(), chat(max_tokens=12, **options)))
    *before, done = found[-1].split("\n\n")[:-1]
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in before]
    if usage:
        assert chunks.pop()["usage"]["completion_tokens"] > 0
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len(found) > 2
    for part in found[:-1]:
        assert part.endswith("\n\n")
        (event, _) = part.split("\n\n")
        assert json.loads(event.removeprefix("data: "))["choices"][0]["finish_reason"] is None
