"""A real server on a real port: official clients, clients that leave, and the end of it all."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import httpx
import pytest

from dspark.errors import ConfigError, EngineError
from dspark.server.run import bind, url_of
from serving import (
    CHAT,
    MODEL,
    PATIENCE_S,
    Live,
    chat,
    events,
    get,
    listening,
    post,
    refused,
    soon,
    stream,
    text,
)


@pytest.fixture(scope="module")
def said(live: Live) -> str:
    body = post(live.url + CHAT, json=chat()).json()
    content: str = body["choices"][0]["message"]["content"]
    return content


def counted(live: Live, reason: str) -> float:
    """Answers that ended so."""
    registry = live.service.monitor.metrics.registry
    return registry.get_sample_value("dspark:answers_total", {"finish_reason": reason}) or 0.0


# ---- clients --------------------------------------------------------------------------------


def test_the_official_client(live: Live, said: str) -> None:
    from openai import APIError, BadRequestError, NotFoundError, OpenAI

    with OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
        whole = client.chat.completions.create(**chat(logprobs=True, top_logprobs=2))
        assert whole.choices[0].message.content == said
        assert whole.usage is not None
        assert whole.usage.to_dict()["speculative"]["drafted"] > 0  # type: ignore[index]
        assert whole.choices[0].logprobs is not None
        assert whole.choices[0].logprobs.content
        parts, usage = [], None
        for chunk in client.chat.completions.create(
            **chat(stream=True, stream_options={"include_usage": True})
        ):
            parts += [choice.delta.content or "" for choice in chunk.choices]
            usage = chunk.usage or usage
        assert "".join(parts) == said
        assert usage == whole.usage
        old = client.completions.create(**text(logprobs=1))
        streamed = [c.choices[0].text for c in client.completions.create(**text(stream=True))]
        assert "".join(streamed) == old.choices[0].text
        with pytest.raises(BadRequestError, match="frequency_penalty"):
            client.chat.completions.create(**chat(frequency_penalty=1))
        with pytest.raises(NotFoundError):
            client.models.retrieve("gpt-9")
        assert issubclass(BadRequestError, APIError)


def test_langchain(live: Live, said: str) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    model = ChatOpenAI(
        base_url=live.url + "/v1",
        api_key=SecretStr("none"),
        model=MODEL,
        temperature=0,
        max_completion_tokens=6,
    )
    assert model.invoke("add the rain").content == said
    assert "".join(str(part.content) for part in model.stream("add the rain")) == said


# ---- clients that leave, and those that are too many -----------------------------------------


def test_a_client_that_leaves_frees_its_place(make: Any, slow: Any) -> None:
    with listening(make(slow.engine, grace_s=0.0)) as live:
        engine = live.service.engine
        with stream("POST", live.url + CHAT, json=chat(max_tokens=80, stream=True)) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert soon(lambda: engine.running == 1)
        assert soon(lambda: engine.running == 0)
        within = httpx.Timeout(PATIENCE_S, read=0.4)
        with pytest.raises(httpx.ReadTimeout):
            post(live.url + CHAT, json=chat(max_tokens=80), timeout=within)
        assert soon(lambda: engine.running == engine.waiting == 0)
        assert soon(lambda: counted(live, "cancelled") == 2)
        assert slow.engine.stats.committed < 160, "two whole answers"
        slow.hurry.set()
        answer = post(live.url + CHAT, json=chat())
        assert answer.json()["usage"]["completion_tokens"] == 6


def test_too_many_requests(make: Any, slow: Any) -> None:
    with listening(make(slow.engine, max_queue=1, grace_s=0.0)) as live:
        engine = live.service.engine
        body = chat(max_tokens=80, stream=True)
        with stream("POST", live.url + CHAT, json=body):
            assert soon(lambda: engine.running == 1)
            with stream("POST", live.url + CHAT, json=body):
                assert soon(lambda: engine.waiting == 1)
                answer = post(live.url + CHAT, json=chat())
                error = refused(answer, 429)
                assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
                assert int(answer.headers["retry-after"]) >= 1
        assert soon(lambda: engine.running == engine.waiting == 0)
        answer = post(live.url + CHAT, json=chat(n=5))
        refused(answer, 429)
        assert soon(lambda: engine.running == engine.waiting == 0), "those that fitted are gone"


def test_a_request_that_takes_too_long(make: Any, slow: Any) -> None:
    with listening(make(slow.engine, timeout_s=0.5, grace_s=0.0)) as live:
        error = refused(post(live.url + CHAT, json=chat(max_tokens=80)), 504)
        assert error["code"] == "timeout"
        answer = post(live.url + CHAT, json=chat(max_tokens=80, stream=True))
        *_, last = events(answer)
        assert last["error"]["code"] == "timeout"
        assert "event: error\n" in answer.text
        assert soon(lambda: live.service.engine.running == 0)
        assert counted(live, "timeout") == 2


def test_headers_that_are_too_large(live: Live) -> None:
    answer = get(live.url + "/health", headers={"X": "x" * 40_000})
    assert answer.status_code in (400, 431)
    assert get(live.url + "/health?" + "x" * 30_000).status_code in (400, 431)


# ---- failures -------------------------------------------------------------------------------


def test_one_bad_request_does_not_end_the_others(make: Any, slow: Any) -> None:
    fault = EngineError("no numbers in /srv/model")
    fault.requests = (1,)
    slow.fault = fault
    with listening(make(slow.engine, grace_s=0.0)) as live:
        answer = post(live.url + CHAT, json=chat())
        assert refused(answer, 503)["code"] == "engine_error"
        assert "srv" not in answer.text
        slow.hurry.set()
        assert get(live.url + "/ready").status_code == 200
        assert post(live.url + CHAT, json=chat()).status_code == 200


def test_an_engine_that_fails_turns_the_server_red(make: Any, slow: Any) -> None:
    slow.fault = RuntimeError("/srv/model is gone")
    with listening(make(slow.engine, grace_s=0.0)) as live:
        *_, last = events(post(live.url + CHAT, json=chat(stream=True)))
        assert last["error"]["code"] == "engine_error"
        assert "srv" not in last["error"]["message"]
        refused(get(live.url + "/ready"), 503)
        refused(post(live.url + CHAT, json=chat()), 503)
        assert get(live.url + "/health").status_code == 200
        metrics = get(live.url + "/metrics").text
        assert "dspark:engine_healthy 0.0" in metrics


# ---- the end --------------------------------------------------------------------------------


@pytest.mark.parametrize("grace_s", [0.0, PATIENCE_S])
def test_the_end_of_the_server_is_told(make: Any, slow: Any, grace_s: float) -> None:
    """What runs may finish in time, what waits and what does not hears of it."""

    async def ask(url: str, streaming: bool) -> httpx.Response:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            return await client.post(url + CHAT, json=chat(max_tokens=60, stream=streaming))

    async def both(live: Live) -> list[httpx.Response]:
        first = asyncio.create_task(ask(live.url, True))
        while not live.service.engine.running:
            await asyncio.sleep(0.01)
        slow.go.clear()  # the first must not end before the second waits
        second = asyncio.create_task(ask(live.url, False))
        while not live.service.engine.waiting:
            await asyncio.sleep(0.01)
        live.server.should_exit = True
        slow.go.set()
        return [await first, await second]

    with listening(make(slow.engine, grace_s=grace_s)) as live:
        streamed, waited = asyncio.run(both(live))
    *_, last = events(streamed)
    if grace_s:
        assert last["choices"][0]["finish_reason"] == "length"
    else:
        assert last["error"]["code"] == "shutting_down"
    assert refused(waited, 503)["code"] == "shutting_down"


def test_a_port_in_use_is_one_clear_line() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert url_of(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(
            ConfigError, match=rf"Cannot listen on 127\.0\.0\.1 port {port}.*--port"
        ):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"There is no address nowhere\.invalid"):
        bind("nowhere.invalid", 0)


def test_what_is_loaded_is_set_aside_while_serving(make: Any) -> None:
    """The garbage collector would walk through all of it in the middle of answers."""
    with listening(make(grace_s=0.0)) as live:
        assert gc.get_freeze_count() > 100_000
        assert post(live.url + CHAT, json=chat()).status_code == 200
    assert gc.get_freeze_count() == 0
