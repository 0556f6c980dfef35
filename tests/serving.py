"""A server in a test: its requests, the shape of its errors, its events, and a real port."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from fastapi import FastAPI

from dspark.server.run import Server, bind, url_of
from dspark.server.service import Service

MODEL = "tiny"
PATIENCE_S = 120.0  # a busy machine takes its time; nothing waits as long where all is well
get = partial(httpx.get, timeout=PATIENCE_S)
post = partial(httpx.post, timeout=PATIENCE_S)
stream = partial(httpx.stream, timeout=PATIENCE_S)
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WORDS = """
river stone candle winter letter garden engine silver bridge morning paper window salt forest music
number harbour copper question island thread basket thunder kitchen mirror planet ladder honey
market shadow orange feather valley button story glass hammer spring ocean ticket write explain
list compare describe the a of and with without why how under between
"""


def chat(text: str = "add the rain", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    base = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 6}
    return base | {"temperature": 0} | fields


def text(prompt: Any = "the rain", **fields: Any) -> dict[str, Any]:
    """A completion request's body."""
    return {"model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0} | fields


def different_chats(how_many: int, words: tuple[int, int], **fields: Any) -> list[dict[str, Any]]:
    """Bodies that are all different, greedy, made of words drawn at random."""
    draw, known = random.Random(0), WORDS.split()
    texts = [" ".join(draw.choices(known, k=draw.randint(*words))) for _ in range(how_many)]
    assert len(set(texts)) == how_many
    return [chat(text, max_tokens=draw.randint(24, 48), **fields) for text in texts]


def refused(response: Any, status: int = 400) -> dict[str, Any]:
    """The error of an answer that has OpenAI's shape and this status."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def events(response: Any) -> list[dict[str, Any]]:
    """Data of the events of a stream, which must end as streams do."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.rpartition("data: ")[2]) for block in blocks[:-2]]


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


async def streamed(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> tuple[str, int]:
    """Text and tokens of a streamed answer."""
    wish = body | {"stream": True, "stream_options": {"include_usage": True}}
    parts: list[str] = []
    tokens, last = 0, ""
    async with client.stream("POST", url + CHAT, json=wish) as answer:
        assert answer.status_code == 200, (await answer.aread()).decode()
        async for line in answer.aiter_lines():
            assert not line.startswith("event: error"), parts
            last = line.removeprefix("data: ") or last
            if line and last != "[DONE]":
                chunk = json.loads(last)
                parts += [choice["delta"].get("content", "") for choice in chunk["choices"]]
                tokens = (chunk["usage"] or {}).get("completion_tokens", 0)
    assert last == "[DONE]", parts
    return "".join(parts), tokens


def soon(fact: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    """Whether something comes true while other threads work."""
    end = time.monotonic() + seconds
    while not fact() and time.monotonic() < end:
        time.sleep(0.01)
    return fact()


@dataclass
class Live:
    """A server on a real port."""

    url: str
    server: Server
    service: Service


@contextmanager
def listening(app: FastAPI) -> Iterator[Live]:
    """Run an app under uvicorn in a thread, and stop it in the end."""
    socket = bind("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(app, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield Live(url_of(socket), server, app.state.service)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        socket.close()
        assert not thread.is_alive()
