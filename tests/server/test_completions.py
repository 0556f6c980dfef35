"""Both completion endpoints: texts, usage, streams, sampling, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from dspark.core import SamplingParams
from dspark.engine.engine import Engine
from dspark.targets.target import Target
from serving import CHAT, MODEL, TEXT, chat, events, refused, soon, text


def plain(target: Target, ids: list[int], tokens: int) -> list[int]:
    """What the target alone says, greedily."""
    (request,) = Engine(target, max_len=96).generate([ids], SamplingParams(max_new_tokens=tokens))
    return request.output_ids


def test_a_chat_answer_is_the_target_s_own(client: TestClient, target: Target) -> None:
    body = client.post(CHAT, json=chat()).json()
    ids = target.encode("add the rain")
    said = plain(target, ids, 6)
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"]) == ("chat.completion", MODEL)
    (choice,) = body["choices"]
    message = {"role": "assistant", "content": target.decode(said), "refusal": None}
    assert choice["message"] == message
    assert choice["finish_reason"] == ("stop" if said[-1] in target.stop_ids else "length")
    usage = body["usage"]
    spec = usage.pop("speculative")
    assert usage == {
        "prompt_tokens": len(ids),
        "completion_tokens": len(said),
        "total_tokens": len(ids) + len(said),
    }
    assert spec["drafted"] >= spec["verified"] >= spec["accepted"] >= 0
    assert spec["verified"] > 0
    assert spec["accepted_length"] >= 1


def test_a_completion_goes_on_from_bare_text_or_ids(client: TestClient, target: Target) -> None:
    ids = target.encode("the rain", raw=True)
    expected = target.decode(plain(target, ids, 8))
    for prompt in ("the rain", ids):
        body = client.post(TEXT, json=text(prompt)).json()
        assert body["object"] == "text_completion"
        assert body["choices"][0]["text"] == expected
    body = client.post(TEXT, json=text(["the rain", "sun"], n=2)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] == expected for choice in body["choices"]][:2] == [True, True]
    assert body["usage"]["prompt_tokens"] == len(ids) + len(target.encode("sun", raw=True))


def test_an_older_completion_has_16_tokens_unless_told(client: TestClient) -> None:
    body = client.post(TEXT, json=text(max_tokens=None)).json()
    assert body["usage"]["completion_tokens"] <= 16
    assert body["choices"][0]["finish_reason"] == "length"


def test_a_chat_answer_goes_to_the_end_of_the_room(client: TestClient) -> None:
    body = client.post(CHAT, json=chat(max_tokens=None)).json()
    reason = body["choices"][0]["finish_reason"]
    assert reason == "stop" or body["usage"]["total_tokens"] == 96


@pytest.mark.parametrize("usage", [True, False])
def test_a_chat_stream_adds_up_to_the_whole(client: TestClient, usage: bool) -> None:
    whole = client.post(CHAT, json=chat()).json()
    options = {"include_usage": True} if usage else None
    chunks = events(client.post(CHAT, json=chat(stream=True, stream_options=options)))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    if usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"] == whole["usage"]
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)
    assert all("dspark" not in chunk for chunk in chunks)
    parts = [chunk["choices"][0] for chunk in chunks]
    said = "".join(part["delta"].get("content", "") for part in parts)
    assert said == whole["choices"][0]["message"]["content"]
    reasons = [part["finish_reason"] for part in parts]
    assert reasons == [None] * (len(parts) - 1) + [whole["choices"][0]["finish_reason"]]
    assert parts[-1]["delta"] == {}


def test_a_completion_stream_adds_up_by_choice(client: TestClient) -> None:
    request = text(["the rain", "sun"], n=2, temperature=1, seed=3)
    whole = client.post(TEXT, json=request).json()
    said = [""] * 4
    for chunk in events(client.post(TEXT, json=request | {"stream": True})):
        (part,) = chunk["choices"]
        said[part["index"]] += part["text"]
    assert said == [choice["text"] for choice in whole["choices"]]
    assert said[0] != said[1]


def test_seeds(client: TestClient) -> None:
    def said(**fields: Any) -> list[str]:
        body = client.post(CHAT, json=chat(temperature=None, n=3, max_tokens=6, **fields)).json()
        return [choice["message"]["content"] for choice in body["choices"]]

    assert said(seed=7) == said(seed=7)
    assert said(seed=-7) == said(seed=-7) != said(seed=7)
    assert len(set(said(seed=7))) == 3  # samples share the seed, not the numbers
    assert said() != said()


def test_how_tokens_came_about(client: TestClient) -> None:
    whole = client.post(CHAT, json=chat(dspark_tokens=True, max_tokens=20)).json()
    message = whole["choices"][0]["message"]
    chunks = events(client.post(CHAT, json=chat(dspark_tokens=True, max_tokens=20, stream=True)))
    told = [chunk["dspark"] for chunk in chunks if "dspark" in chunk]
    tokens = [token for each in told for token in each["tokens"]]
    assert message["dspark"]["tokens"] == tokens
    assert message["dspark"]["rounds"] == [t["round"] for t in told if t["round"]]
    assert "".join(token["text"] for token in tokens) == message["content"]
    assert {token["kind"] for token in tokens} <= {"accepted", "drawn", "plain"}
    assert told[0]["round"] is None
    assert tokens[0]["kind"] == "plain"
    for each in told[1:]:
        record = each["round"]
        assert record.keys() == {"drafted", "verified", "accepted", "confidence"}
        assert len(record["confidence"]) == record["drafted"]
        assert sum(t["kind"] == "accepted" for t in each["tokens"]) == record["accepted"]


def test_stop_strings(client: TestClient, target: Target) -> None:
    full = client.post(CHAT, json=chat(max_tokens=30)).json()["choices"][0]["message"]["content"]
    stop = full[9:12]
    expected = full[: full.index(stop)]
    for stream in (False, True):
        request = chat(max_tokens=30, stop=["never said", stop], stream=stream)
        response = client.post(CHAT, json=request)
        if stream:
            parts = [chunk["choices"][0] for chunk in events(response)]
            said = "".join(part["delta"].get("content", "") for part in parts)
            reason = parts[-1]["finish_reason"]
        else:
            body = response.json()
            said, reason = (body["choices"][0]["message"]["content"]), "stop"
            assert body["choices"][0]["finish_reason"] == "stop"
            assert body["usage"]["completion_tokens"] < 30
        assert (said, reason) == (expected, "stop")
    engine = client.app.state.service.engine  # type: ignore[attr-defined]
    assert soon(lambda: engine.running == 0), "generation goes on behind a stop string"


def test_parts_and_developers(client: TestClient) -> None:
    parts = [{"type": "text", "text": "add "}, {"type": "text", "text": "the rain"}]
    whole = client.post(CHAT, json=chat())
    split = client.post(CHAT, json=chat(parts))  # type: ignore[arg-type]
    assert split.json()["choices"] == whole.json()["choices"]
    said = [
        client.post(CHAT, json=chat(messages=[{"role": role, "content": "be kind"}])).json()
        for role in ("system", "developer")
    ]
    assert said[0]["choices"] == said[1]["choices"]


# ---- refusals -------------------------------------------------------------------------------

# Field, values that change nothing, one that would.
CHAT_INERT: list[tuple[str, list[Any], Any]] = [
    ("audio", [None], {"voice": "alloy", "format": "wav"}),
    ("frequency_penalty", [None, 0, 0.0], 0.5),
    ("presence_penalty", [None, 0, 0.0], -1),
    ("logit_bias", [None, {}], {"5": 10}),
    ("functions", [None, []], [{"name": "f"}]),
    ("function_call", [None, "none", "auto"], {"name": "f"}),
    ("modalities", [None, ["text"]], ["text", "audio"]),
    ("prediction", [None], {"type": "content", "content": "x"}),
    ("reasoning_effort", [None, "none"], "high"),
    ("response_format", [None, {"type": "text"}], {"type": "yaml"}),
    ("service_tier", [None, "auto", "default"], "priority"),
    ("tool_choice", [None, "none", "auto"], "required"),
    ("tools", [None, []], [{"type": "function", "function": {"name": "f"}}]),
    ("verbosity", [None, "medium"], "low"),
    ("web_search_options", [None], {}),
    ("stream", [None, False], "yes"),
    ("stream_options", [None, {}, {"include_usage": False}], {"include_usage": True}),
    ("n", [None, 1], 129),
    ("store", [None, False, True], "yes"),
    ("metadata", [None, {"a": "b"}], {"a": 1}),
    ("parallel_tool_calls", [None, True, False], 1),
    ("prompt_cache_key", [None, "k"], 1),
    ("prompt_cache_options", [None, {"mode": "explicit"}], "k"),
    ("moderation", [None], {"model": "m"}),
    ("prompt_cache_retention", [None, "24h"], 1),
    ("safety_identifier", [None, "someone"], 1),
    ("user", [None, "someone"], 1),
    ("logprobs", [None, False], 1),
    ("top_logprobs", [None, 0], 3),
    ("temperature", [0, 0.0], 2.5),
    ("top_p", [None, 1, 1.0], 0),
    ("top_k", [None, 0, -1], -2),
    ("top_k", [2**31 - 1], 2**70),  # once it stopped the engine
    ("seed", [None, 5], 2**63),
    ("stop", [None, [], "never said"], ["a", "b", "c", "d", "e"]),
    ("max_tokens", [6], 0),
    ("max_completion_tokens", [None, 6], 13),
    ("dspark_tokens", [None, False], "yes"),
]
TEXT_INERT: list[tuple[str, list[Any], Any]] = [
    ("best_of", [None, 1], 2),
    ("echo", [None, False], True),
    ("suffix", [None, ""], "end"),
    ("max_completion_tokens", [None, 8], 0),
    ("frequency_penalty", [None, 0], 1),
    ("presence_penalty", [None, 0], 1),
    ("logit_bias", [None, {}], {"5": 10}),
    ("logprobs", [None], 6),
    ("user", [None, "someone"], 1),
]


@pytest.mark.parametrize(("field", "fine", "other"), CHAT_INERT, ids=lambda v: str(v)[:20])
def test_chat_fields(client: TestClient, field: str, fine: list[Any], other: Any) -> None:
    plain = client.post(CHAT, json=chat()).json()["choices"]
    for value in fine:
        response = client.post(CHAT, json=chat(**{field: value}))
        assert response.status_code == 200, response.text
        assert response.json()["choices"] == plain, "a default must change nothing"
    error = refused(client.post(CHAT, json=chat(**{field: other})))
    named = "max_tokens" if field == "max_completion_tokens" else field
    assert error["param"].split("[")[0].split(".")[0] == named
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("field", "fine", "other"), TEXT_INERT, ids=lambda v: str(v)[:20])
def test_completion_fields(client: TestClient, field: str, fine: list[Any], other: Any) -> None:
    plain = client.post(TEXT, json=text()).json()["choices"]
    for value in fine:
        response = client.post(TEXT, json=text(**{field: value}))
        assert response.status_code == 200, response.text
        assert response.json()["choices"] == plain
    assert refused(client.post(TEXT, json=text(**{field: other})))["param"] == field


def test_every_field_openai_documents_is_known(client: TestClient) -> None:
    """The official client's own types say which fields there are."""
    from openai.types import completion_create_params as old
    from openai.types.chat import completion_create_params as new

    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name, params in (
        ("ChatRequest", new.CompletionCreateParamsNonStreaming),
        ("CompletionRequest", old.CompletionCreateParamsNonStreaming),
    ):
        documented = params.__required_keys__ | params.__optional_keys__
        assert documented - schemas[name]["properties"].keys() == set()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"min_q": 0.1}, "min_q", "Unknown field: min_q"),
        ({"min_p": 0.1}, "min_p", "or give 0"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": None}, "messages", "list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'user'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "at least 1"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "'text'",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "name": "y"}]},
            "messages[0].name",
            "not supported",
        ),
        ({"temperature": "0.5"}, "temperature", "number"),
        ({"n": True}, "n", "integer"),
        ({"stop": ""}, "stop", "at least 1"),
        ({"stop": list("abcde")}, "stop", "stop takes at most 4 strings, not 5"),
        ({"stop": ["a", 1]}, "stop[1]", "valid string"),
        ({"stop": 1}, "stop", "should be a valid string or a valid list"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is required"),
        ({"messages": {"role": "user"}}, "messages", "should be a valid list"),
        ({"messages": ["hello"]}, "messages[0]", "should be a valid object"),
        ({"response_format": "json"}, "response_format", "should be a valid object"),
        ({"response_format": {}}, "response_format.type", "is required"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "'json_object'"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x", "Unknown"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "response_format.json_schema.name is required",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
            "should match",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": 1, "json_schema": 1},
                }
            },
            "response_format.json_schema.json_schema",
            "Unknown",
        ),
        ({"stop": [""]}, "stop[0]", "at least 1"),
        ({"stream_options": {"include_usage": True, "x": 1}}, "stream_options.x", "Unknown"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "20"),
    ],
    ids=str,
)
def test_mistakes_are_named(
    client: TestClient, fields: dict[str, Any], param: str, words: str
) -> None:
    response = client.post(
        CHAT, content=json.dumps(chat(**fields)), headers={"Content-Type": "application/json"}
    )
    error = refused(response)
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("prompt", [[], [[]], [""], "", [[400]], [-1], ["a", 1], None, [[1.5]], {}])
def test_prompts_that_are_none(client: TestClient, prompt: Any) -> None:
    assert refused(client.post(TEXT, json=text(prompt)))["param"].startswith("prompt")


def test_too_many_answers(client: TestClient) -> None:
    assert refused(client.post(TEXT, json=text(["a"] * 65, n=2)))["param"] == "n"


@pytest.mark.parametrize("words", [80, 900])  # past the server's room, past the target's
def test_a_prompt_that_is_too_long(client: TestClient, words: int) -> None:
    long = "ox " * words
    for path, body, param in (
        (CHAT, chat(long), "messages"),
        (TEXT, text(long), "prompt"),
    ):
        error = refused(client.post(path, json=body))
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)


def test_another_model(client: TestClient) -> None:
    for path, body in ((CHAT, chat(model="gpt-9")), (TEXT, text(model="gpt-9"))):
        error = refused(client.post(path, json=body), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    refused(client.get("/v1/models/gpt-9"), 404)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b"1" * 5000, b"[" * 9000, b'{"model": NaN}'),
        b'{"\\ud800": 1}',
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}], "prompt": ""}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
def test_bodies_that_are_none(client: TestClient, content: bytes) -> None:
    for path in (CHAT, TEXT):
        refused(client.post(path, content=content, headers={"Content-Type": "application/json"}))


def test_json_needs_its_content_type(client: TestClient) -> None:
    """A page elsewhere may send text/plain without asking first; it must not get through."""
    headers = {"Content-Type": "text/plain"}
    refused(client.post(CHAT, content=json.dumps(chat()), headers=headers))
