"""Clients that send odd things, slowly, twice or not to the end: a clear answer, and the server
goes on for all others."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serving import (
    CHAT,
    PATIENCE_S,
    TEXT,
    Live,
    chat,
    content,
    events,
    post,
    refused,
    soon,
    stream,
    text,
)

JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def _it_goes_on(live: Live) -> Iterator[None]:
    """After every test the server is whole, idle, and says what it said before."""
    before = content(post(live.url + CHAT, json=chat()))
    yield
    engine = live.service.engine
    assert soon(lambda: engine.running == engine.waiting == 0)
    assert engine.healthy
    assert content(post(live.url + CHAT, json=chat())) == before


def send(live: Live, raw: str | bytes, path: str = CHAT, **headers: str) -> Any:
    return post(live.url + path, content=raw, headers=JSON | headers)


def with_field(field: str) -> str:
    """A chat body with a piece of JSON put in as it stands."""
    return json.dumps(chat())[:-1] + f", {field}}}"


# ---- 1. numbers that are none, or too large --------------------------------------------------


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ["top_p", "frequency_penalty", "nobodys", "metadata"])
def test_names_that_json_does_not_have(live: Live, field: str, name: str) -> None:
    error = refused(send(live, with_field(f'"{field}": {name}')))
    assert f"has no {name}" in error["message"]


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("top_p", "1e400", "top_p"),
        ("temperature", "-1e400", "temperature"),
        ("frequency_penalty", "1e400", "frequency_penalty"),
        ("top_k", "9" * 400, "top_k"),
        ("seed", "9" * 400, "seed"),
        ("n", "9" * 400, "n"),
        ("top_logprobs", "9" * 400, "top_logprobs"),
        ("seed", "1.5", "seed"),
        ("max_tokens", "-" + "9" * 400, "max_tokens"),
        ("max_tokens", "6.0", "max_tokens"),
    ],
)
def test_numbers_out_of_all_measure(live: Live, field: str, value: str, param: str) -> None:
    assert refused(send(live, with_field(f'"{field}": {value}')))["param"] == param


def test_numbers_that_are_large_and_fine(live: Live) -> None:
    """No answer is longer than there is room for, whatever is asked."""
    whole = post(live.url + TEXT, json=text(max_tokens=10**30)).json()
    assert whole["usage"]["total_tokens"] <= 96
    assert refused(send(live, with_field('"seed": ' + "9" * 5000)))["param"] is None


@pytest.mark.parametrize("prompt", [[10**30], [-(10**30)], [[1, 2**63]], [2**31], [1.0], [True]])
def test_token_ids_out_of_all_measure(live: Live, prompt: list[Any]) -> None:
    assert refused(post(live.url + TEXT, json=text(prompt)))["param"].startswith("prompt")


# ---- 2. the same key twice -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (with_field('"temperature": 0'), "temperature"),
        (with_field('"temperature": 1.5'), "temperature"),
        (with_field('"metadata": {"a": "1", "a": "2"}'), "a"),
        (
            '{"model": "tiny", "messages": [{"role": "user", "role": "system", "content": "x"}]}',
            "role",
        ),
    ],
)
def test_a_key_that_stands_twice(live: Live, raw: str, key: str) -> None:
    error = refused(send(live, raw))
    assert (error["param"], "twice" in error["message"]) == (key, True)


# ---- 3. depth --------------------------------------------------------------------------------


def nested(levels: int) -> dict[str, Any]:
    """A schema of so many objects inside each other, two levels of JSON each."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}


@pytest.mark.parametrize("levels", [101, 900, 5000, 100_000])
def test_what_lies_too_deep(live: Live, levels: int) -> None:
    for opened, closed in ("[]", ('{"a":', "}")):
        raw = with_field(f'"nobodys": {opened * levels}0{closed * levels}')
        assert "inside each other" in refused(send(live, raw))["message"]
        refused(send(live, with_field(f'"nobodys": {opened * levels}')))  # and is never closed


def test_what_lies_as_deep_as_may_be(live: Live) -> None:
    deep = post(live.url + CHAT, json=chat(response_format=nested(45), max_tokens=4))
    assert content(deep)[:4] == '{"a"'
    refused(post(live.url + CHAT, json=chat(response_format=nested(60))))
    wide = post(live.url + TEXT, json=text([[5, 6]] * 128, max_tokens=1))
    assert len(wide.json()["choices"]) == 128, "many lists beside each other are not deep"


# ---- 4. bodies of another kind ---------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("application/xml", "", "json", "application/jsonp", "text/json", "\xe4/\xf6"),
    ],
)
def test_other_content_types(live: Live, kind: str) -> None:
    headers = {"Content-Type": kind.encode("latin-1")}
    answer = post(live.url + CHAT, content=json.dumps(chat()), headers=headers)
    assert "application/json" in refused(answer)["message"]


@pytest.mark.parametrize(
    "raw",
    [
        gzip.compress(json.dumps(chat()).encode()),
        json.dumps(chat()).encode("utf-16")[:-1],
        json.dumps(chat()).encode() + b"\x00",
        json.dumps(chat()).encode() * 2,
        b"data: " + json.dumps(chat()).encode(),
        json.dumps([chat()]).encode(),
        json.dumps(json.dumps(chat())).encode(),
        b'{"model": "tiny", "messages": [{"role": "user", "content": "caf\xe9"}]}',
        b"{'model': 'tiny'}",
        b"model=tiny",
    ],
)
def test_bodies_that_only_look_like_one(live: Live, raw: bytes) -> None:
    refused(send(live, raw))


def test_bodies_that_only_look_odd(live: Live) -> None:
    expected = content(post(live.url + CHAT, json=chat()))
    plain = json.dumps(chat())
    for raw in (
        json.dumps(chat(), indent=3).replace("\n", "\r\n\t"),
        plain.replace("add", "\\u0061dd"),
        f" {plain} ",
    ):
        assert content(send(live, raw)) == expected
    as_is = {"Content-Type": "application/json; charset=UTF-8"}
    assert content(post(live.url + CHAT, content=plain, headers=as_is)) == expected


# ---- 5. slow clients -------------------------------------------------------------------------


def raw_request(live: Live, body: bytes, path: str = CHAT, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    host = live.url.removeprefix("http://")
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {size}\r\nConnection: close\r\n\r\n".encode() + body


def dial(live: Live) -> socket.socket:
    host, _, port = live.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def everything(line: socket.socket) -> bytes:
    parts = []
    while part := line.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def test_a_body_that_drips(live: Live) -> None:
    expected = content(post(live.url + CHAT, json=chat()))
    raw = raw_request(live, json.dumps(chat()).encode())
    with dial(live) as line:
        for i in range(0, len(raw), 7):
            line.sendall(raw[i : i + 7])
            time.sleep(0.001)
        assert content(post(live.url + CHAT, json=chat())) == expected, "others need not wait"
        answer = everything(line)
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.dumps(expected, ensure_ascii=False).encode() in answer


def test_a_reader_that_does_not_read(live: Live) -> None:
    """Its stream waits for it in the server, and nobody else's does."""
    body = chat(stream=True, max_tokens=80, n=16, dspark_tokens=True, logprobs=True)
    with dial(live) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(raw_request(live, json.dumps(body).encode()))
        for _ in range(3):
            post(live.url + CHAT, json=chat())
        answer = everything(line)
    assert answer.count(b"data: [DONE]") == 1


# ---- 6. streams that are left ----------------------------------------------------------------


def test_streams_left_at_any_moment(live: Live) -> None:
    """Before the first event, after some, in the middle of one, by a reset."""
    body = json.dumps(chat(stream=True, max_tokens=80)).encode()
    for size in (0, 1, 17, 300, 1000, 2500):
        for abrupt in (False, True):
            line = dial(live)
            if abrupt:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            line.sendall(raw_request(live, body))
            got = 0
            while got < size and (part := line.recv(size - got)):
                got += len(part)
            line.close()
    with dial(live) as line:  # and a body that its sender never finishes
        line.sendall(raw_request(live, body, length=len(body) + 50))


def test_many_leave_at_once(live: Live) -> None:
    def leave(i: int) -> None:
        with stream("POST", live.url + CHAT, json=chat(f"sun {i}", stream=True, n=3)) as answer:
            next(answer.iter_lines())

    threads = [threading.Thread(target=leave, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


# ---- 7. several answers with seeds -----------------------------------------------------------


def test_seeded_answers_are_the_same_however_they_are_asked_for(live: Live) -> None:
    """Whole or streamed, alone or among others, with log probabilities or without; each sample is
    the one of its place, however many are asked for."""
    wish = {"temperature": 1, "seed": 11, "max_tokens": 12}

    def said(**more: Any) -> list[str]:
        found = post(live.url + CHAT, json=chat(**wish, **more)).json()["choices"]
        return [choice["message"]["content"] for choice in found]

    four = said(n=4)
    assert len(set(four)) == 4
    assert said(n=4) == four
    assert said() == four[:1]
    assert said(n=2) == four[:2]
    assert said(n=4, logprobs=True, top_logprobs=3) == four
    assert said(n=4, dspark_tokens=True) == four
    parts = ["", "", "", ""]
    for chunk in events(post(live.url + CHAT, json=chat(**wish, n=4, stream=True))):
        for choice in chunk["choices"]:
            parts[choice["index"]] += choice["delta"].get("content", "")
    assert parts == four
    crowd: list[list[str]] = []
    threads = [threading.Thread(target=lambda: crowd.append(said(n=4))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert crowd == [four] * 6


def test_seeded_prompts_in_one_request_and_in_several(live: Live) -> None:
    wish = {"temperature": 1, "seed": 11, "n": 2}
    prompts = ["the rain", "sun", "the rain"]
    together = post(live.url + TEXT, json=text(prompts, **wish)).json()["choices"]
    alone = [
        choice
        for prompt in prompts
        for choice in post(live.url + TEXT, json=text(prompt, **wish)).json()["choices"]
    ]
    assert [c["text"] for c in together] == [c["text"] for c in alone]


# ---- 8. odd letters, and odd HTTP ------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["\x00", "\x7f\x1b[2J", "\u202e\u2066", "\ufffd\ufeff", "é" * 20, "👩‍👩‍👧", "\r\n\r\n"]
)
def test_odd_letters(live: Live, words: str) -> None:
    assert post(live.url + CHAT, json=chat(words)).status_code == 200
    assert post(live.url + CHAT, json=chat(stop=[words, words * 2], user=words)).status_code == 200
    assert refused(post(live.url + CHAT, json=chat(**{words: 1})))["param"] == words
    assert refused(post(live.url + CHAT, json=chat(model=words)), 404)["param"] == "model"


@pytest.mark.parametrize("field", ["user", "stop", "model", "nobodys", "prompt_cache_key"])
def test_half_of_a_surrogate_pair(live: Live, field: str) -> None:
    raw = json.dumps(chat() | {field: "\ud83d"})
    answer = send(live, raw)
    assert answer.status_code in (200, 400, 404), answer.text
    json.loads(answer.text)


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST %s HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
        b"HEAD %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"BREW %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /%%ff%%00/..%%2f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_odd_http(live: Live, raw: bytes) -> None:
    with dial(live) as line:
        line.sendall(raw.replace(b"%s", CHAT.encode()).replace(b"%%", b"%"))
        line.shutdown(socket.SHUT_WR)
        answer = everything(line)
    assert not answer.startswith(b"HTTP/1.1 5"), answer
    assert b"Traceback" not in answer


def test_two_requests_on_one_line(live: Live) -> None:
    body = json.dumps(chat()).encode()
    first = raw_request(live, body).replace(b"Connection: close", b"Connection: keep-alive")
    with dial(live) as line:
        line.sendall(first + raw_request(live, body))
        answer = everything(line)
    assert answer.count(b"HTTP/1.1 200") == 2
