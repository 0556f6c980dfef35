"""Log probabilities as both endpoints word them."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import torch
from starlette.testclient import TestClient

from dspark.core import TokenKind, TokenLogprobs
from dspark.server.answer import Piece
from dspark.server.text import Token
from dspark.server.wire import CompletionWire
from dspark.targets.target import Target
from dspark.targets.token_bytes import TokenBytes
from serving import CHAT, TEXT, chat, events, text


def test_chat_logprobs_are_the_target_s(client: TestClient, target: Target) -> None:
    body = client.post(CHAT, json=chat(logprobs=True, top_logprobs=3, stop="never")).json()
    choice = body["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    ids = target.encode("add the rain")
    last_TD, _ = target.states([ids], ())
    logprobs = torch.log_softmax(target.logits(last_TD[-1:]).float(), -1)[0]
    best = logprobs.topk(3)
    first = content[0]
    assert first["token"] == target.tokenizer.decode([int(best.indices[0])])
    assert math.isclose(first["logprob"], float(best.values[0]), abs_tol=1e-3)
    assert bytes(first["bytes"]).decode() == first["token"]
    assert [entry["token"] for entry in first["top_logprobs"]] == [
        target.tokenizer.decode([i]) for i in best.indices.tolist()
    ]
    none = client.post(CHAT, json=chat(logprobs=True)).json()["choices"][0]["logprobs"]
    assert [entry["logprob"] for entry in none["content"]] == [e["logprob"] for e in content]
    assert all(entry["top_logprobs"] == [] for entry in none["content"])


def test_streamed_logprobs_are_the_same(client: TestClient) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 1}
    whole = client.post(CHAT, json=chat(**fields)).json()["choices"][0]["logprobs"]["content"]
    parts = []
    for chunk in events(client.post(CHAT, json=chat(stream=True, **fields))):
        likely = chunk["choices"][0]["logprobs"]
        parts += likely["content"] if likely else []
    assert [p["token"] for p in parts] == [w["token"] for w in whole]
    assert all(abs(p["logprob"] - w["logprob"]) < 1e-4 for p, w in zip(parts, whole, strict=True))


def test_older_logprobs(client: TestClient) -> None:
    choice = client.post(TEXT, json=text(logprobs=2)).json()["choices"][0]
    likely = choice["logprobs"]
    assert likely.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    said = b"".join(map(written, likely["tokens"]))
    assert said.decode("utf-8", "replace") == choice["text"]
    offsets = likely["text_offset"]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    assert offsets[-1] < len(choice["text"])
    assert all(len(top) <= 2 for top in likely["top_logprobs"])
    streamed: list[int] = []
    for chunk in events(client.post(TEXT, json=text(logprobs=0, stream=True))):
        part = chunk["choices"][0]["logprobs"]
        streamed += part["text_offset"] if part else []
    assert streamed == likely["text_offset"]


def written(token: str) -> bytes:
    """The bytes of a token as the older endpoint words it."""
    words = token.removeprefix("bytes:")
    if words == token:
        return token.encode()
    return re.sub(rb"\\x(..)", lambda found: bytes.fromhex(found[1].decode()), words.encode())


def parts_of_characters(target: Target) -> tuple[list[int], dict[int, float]]:
    """A prompt after which two of the five likeliest tokens are parts of characters, and those."""
    prompts = [[i] for i in range(6, target.spec.vocab_size)]
    last_TD, _ = target.states(prompts, ())
    logprobs_NV = torch.log_softmax(target.logits(last_TD).float(), -1)
    for prompt, log_V in zip(prompts, logprobs_NV, strict=True):
        best = log_V.topk(5)
        found = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        if sum("\ufffd" in target.tokenizer.decode([i]) for i in found) > 1:
            return prompt, found
    raise AssertionError("no such prompt")


def test_parts_of_characters_have_keys_that_differ(client: TestClient, target: Target) -> None:
    """They all read as one replacement character; each keeps its own value."""
    prompt, best = parts_of_characters(target)
    choice = client.post(TEXT, json=text(prompt, logprobs=5, max_tokens=1)).json()["choices"][0]
    (top,) = choice["logprobs"]["top_logprobs"]
    written = {name.encode(): value for name, value in top.items()}
    for token, value in best.items():
        octets = TokenBytes(target.tokenizer).of(token)
        part = b"bytes:" + "".join(f"\\x{byte:02x}" for byte in octets).encode()
        name = octets if octets in written else part
        assert math.isclose(written.pop(name), value, abs_tol=1e-3)
    assert written == {}
    chosen = choice["logprobs"]["tokens"][0]
    assert top[chosen] == choice["logprobs"]["token_logprobs"][0]


def test_parts_of_characters_have_bytes(client: TestClient, target: Target) -> None:
    """The answer is its tokens' bytes end to end, but for special tokens."""
    wish = chat(logprobs=True, top_logprobs=20, temperature=1, seed=5, max_tokens=40, n=3)
    seen = 0
    for choice in client.post(CHAT, json=wish).json()["choices"]:
        content = choice["logprobs"]["content"]
        special = target.tokenizer.all_special_tokens
        plain = [entry for entry in content if entry["token"] not in special]
        octets = b"".join(bytes(entry["bytes"]) for entry in plain)
        assert octets.decode("utf-8", "replace") == choice["message"]["content"]
        for entry in [top for e in content for top in e["top_logprobs"]]:
            part = bytes(entry["bytes"]).decode("utf-8", "ignore").encode() != bytes(entry["bytes"])
            assert part == (entry["token"][:2] == "\\x")
            seen += part
    assert seen


def test_tokens_with_the_same_text_have_keys_that_differ(target: Target) -> None:
    """A vocabulary may have a text twice, as a piece and as a byte; the chosen one has the key."""
    pieces = {97: b"a", 5: b"a", 6: b"a", 7: b"b"}
    octets = SimpleNamespace(of=pieces.__getitem__)
    wire = CompletionWire("m", octets, frozenset(), logprobs=True)  # type: ignore[arg-type]
    told = TokenLogprobs(-2.0, ((5, -0.5), (97, -2.0), (7, -2.5), (6, -3.0)))
    piece = Piece(0, [], [Token(97, "a", TokenKind.PLAIN, told)], None, None)
    likely = wire.delta(piece)["logprobs"]
    assert likely["tokens"] == ["a"]
    expected = {"token_id:5": -0.5, "a": -2.0, "b": -2.5, "token_id:6": -3.0}
    assert likely["top_logprobs"] == [expected]
