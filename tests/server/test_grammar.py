"""Structured output: what a schema forbids is never said, with drafting on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from dspark.core import FinishReason, SamplingParams
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.errors import RequestError
from dspark.server.grammar import JsonGrammars
from dspark.targets.target import Target
from scripted import whole_blocks
from serving import CHAT, chat, refused

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "mood": {"enum": ["good", "bad"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(target: Target) -> JsonGrammars:
    return JsonGrammars(target)


def fits(text: str) -> bool:
    value = json.loads(text)
    assert value.keys() == {"name", "age", "mood"}
    assert len(value["name"]) <= 6
    assert 0 <= value["age"] <= 99
    return value["mood"] in ("good", "bad")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_finished_answer_follows_the_schema(
    temperature: float, target: Target, drafter: Drafter, grammars: JsonGrammars
) -> None:
    """200 answers of a model that knows nothing of JSON."""
    params = SamplingParams(
        temperature=temperature, max_new_tokens=80, grammar=grammars.compile(SCHEMA)
    )
    engine = Engine(target, drafter, whole_blocks(drafter), slots=16, max_len=128, seed=3)
    prompts = [[5 + i % 100, 7, 5 + i // 100] for i in range(200)]
    requests = engine.generate(prompts, params)
    stopped = [request for request in requests if request.finish is FinishReason.STOP]
    assert len(stopped) > 150
    assert all(fits(target.decode(request.output_ids)) for request in stopped)
    accepted = sum(record.accepted for request in requests for record in request.rounds)
    assert accepted > 100, "drafts take part"


def test_greedy_text_is_plain_decoding_s(
    target: Target, drafter: Drafter, grammars: JsonGrammars
) -> None:
    params = SamplingParams(max_new_tokens=60, grammar=grammars.compile(SCHEMA))
    prompts = [[5, 6], [9], [20, 30, 40]]
    plain = Engine(target, max_len=128).generate(prompts, params)
    drafted = Engine(target, drafter, whole_blocks(drafter), max_len=128).generate(prompts, params)
    assert [r.output_ids for r in drafted] == [r.output_ids for r in plain]


def test_a_state_tells_what_may_come(target: Target, grammars: JsonGrammars) -> None:
    state = grammars.compile({"enum": ["ab", "ac"]}).start()
    ids = target.tokenizer('"ab"', add_special_tokens=False)["input_ids"]
    first = state.allowed([])
    assert first is not None
    assert first[ids[0]]
    assert not first[sorted(target.stop_ids)].any()
    end = state.allowed(ids)
    assert end is not None
    assert end.nonzero()[0].tolist() == sorted(target.stop_ids)
    wrong = next(i for i in range(len(first)) if not first[i])
    assert state.allowed([wrong]) is None
    again = state.allowed([])
    assert again is not None
    assert (again == first).all(), "asking changes nothing"
    state.advance(ids)
    now = state.allowed([])
    assert now is not None
    assert (now == end).all()


def test_a_text_may_go_on_behind_its_end(target: Target, grammars: JsonGrammars) -> None:
    """As it does for requests that ignore stop tokens."""
    ids = target.tokenizer('"ab"', add_special_tokens=False)["input_ids"]
    end = min(target.stop_ids)
    at_once, in_turn = (grammars.compile({"enum": ["ab"]}).start() for _ in range(2))
    at_once.advance([*ids, end, end])
    for token in (*ids, end, end):
        in_turn.advance([token])
    for state in (at_once, in_turn):
        left = state.allowed([end])
        assert left is not None
        assert left.nonzero()[0].tolist() == sorted(target.stop_ids)
        assert state.allowed(ids) is None


def test_a_state_tells_of_its_errors(target: Target, grammars: JsonGrammars) -> None:
    """The library goes on after one, and allows nothing but the end."""
    state = grammars.compile({"enum": ["ab"]}).start()
    first = state.allowed([])
    assert first is not None
    wrong = int((~first).nonzero()[0][0])
    with pytest.raises(ValueError, match=f"token {wrong} is not allowed"):
        state.advance([wrong])
    matcher = state._matcher
    assert not matcher.consume_tokens([wrong])
    assert matcher.is_stopped()
    for ask in (state.allowed, state.advance):
        with pytest.raises(ValueError, match=r"\w"):
            ask([])


def test_compiled_schemas_are_kept(grammars: JsonGrammars) -> None:
    assert grammars.compile(SCHEMA) is grammars.compile(dict(SCHEMA))


@pytest.mark.parametrize("schema", [{"type": "strange"}, {"properties": 5}])
def test_schemas_that_cannot_be_served(schema: Any, grammars: JsonGrammars) -> None:
    with pytest.raises(RequestError, match="JSON schema cannot be"):
        grammars.compile(schema)


def wanted(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}


@pytest.mark.parametrize("stream", [False, True])
def test_over_http(client: TestClient, stream: bool) -> None:
    body = chat(response_format=wanted(SCHEMA), max_tokens=80, seed=1, temperature=1)
    answer = client.post(CHAT, json=body).json()["choices"][0]
    if stream:
        with client.stream("POST", CHAT, json=body | {"stream": True}) as response:
            lines = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
        pieces = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines]
        assert "".join(pieces) == answer["message"]["content"]
    assert answer["finish_reason"] == "stop"
    assert fits(answer["message"]["content"])


def test_any_object_over_http(client: TestClient) -> None:
    answer = client.post(CHAT, json=chat(response_format={"type": "json_object"}, max_tokens=30))
    assert answer.json()["choices"][0]["message"]["content"].startswith("{")


def test_a_bad_schema_over_http(client: TestClient) -> None:
    error = refused(client.post(CHAT, json=chat(response_format=wanted({"type": "strange"}))))
    assert (error["param"], error["type"]) == ("response_format", "invalid_request_error")
    assert "strange" in error["message"]
    error = refused(client.post(CHAT, json=chat(response_format={"type": "json_schema"})))
    assert error["param"].startswith("response_format")
