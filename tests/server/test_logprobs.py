"""Log probabilities as both endpoints word them."""

from __future__ import annotations

import math
from typing import Any

import torch
from starlette.testclient import TestClient

from dspark.models.target import Target
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
    assert "".join(likely["tokens"]) == choice["text"]
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
