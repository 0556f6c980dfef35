"""Fields that are not served: neutral values pass, others are refused by name, and so are
unknown ones unless they are null or the server ignores them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dspark.server import fields
from dspark.server.fields import Inert
from serving import CHAT, TEXT, chat, events, refused, text

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
ODD = {"an odd": ["value"]}  # nobody's default


def table_of(path: str) -> dict[str, Inert]:
    return fields.CHAT if path == CHAT else fields.COMPLETION


def body_of(path: str, **more: Any) -> dict[str, Any]:
    return chat(**more) if path == CHAT else text(**more)


def with_message(**more: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": "add the rain", **more}])


def with_part(**more: Any) -> dict[str, Any]:
    return with_message(content=[{"type": "text", "text": "add the rain", **more}])


def answer(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


@pytest.fixture(scope="module")
def lenient(make: Any) -> Iterator[TestClient]:
    with TestClient(make(ignore_unknown=True)) as client:
        yield client


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_neutral_values_pass_all_at_once(client: TestClient, path: str) -> None:
    plain = answer(client, path, body_of(path))
    for last in (0, -1):
        neutral = {name: ([None, *known.same])[last] for name, known in table_of(path).items()}
        assert answer(client, path, body_of(path, **neutral)) == plain


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_each_is_refused_by_name_where_it_would_matter(client: TestClient, path: str) -> None:
    for name, known in table_of(path).items():
        response = client.post(path, json=body_of(path, **{name: ODD}))
        if not known.reason:
            assert response.status_code == 200, response.text
            continue
        error = refused(response)
        assert error["param"] == name
        assert known.reason in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("min_p", 0.05), ("repetition_penalty", 1.1), ("ignore_eos", True), ("min_tokens", 5)),
        *(("skip_special_tokens", False), ("stop_token_ids", [5]), ("min_p", False)),
        *(("chat_template_kwargs", {"enable_thinking": False}), ("continue_final_message", True)),
        *(("add_generation_prompt", False), ("logit_bias", {"5": 1}), ("guided_regex", "a+")),
        *(("skip_special_tokens", 1), ("echo", True), ("frequency_penalty", 1e-9)),
    ],
)
def test_what_would_change_the_answer(client: TestClient, field: str, value: Any) -> None:
    assert refused(client.post(CHAT, json=chat(**{field: value})))["param"] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("min_p", 0), ("min_p", 0.0), ("repetition_penalty", 1.0), ("top_k", -1)),
        *(("chat_template_kwargs", {}), ("ignore_eos", False), ("skip_special_tokens", True)),
        *(("add_generation_prompt", True), ("continue_final_message", False), ("min_tokens", 0)),
        *(("stop_token_ids", []), ("max_completion_tokens", 6), ("nobodys", None)),
    ],
)
def test_what_load_testers_and_editors_send(client: TestClient, field: str, value: Any) -> None:
    """The reports that this table began with."""
    for_chat = ("chat_template_kwargs", "add_generation_prompt", "continue_final_message")
    for path in (CHAT,) if field in for_chat else (CHAT, TEXT):
        body = body_of(path, max_tokens=6)
        assert answer(client, path, body | {field: value}) == answer(client, path, body)
    assert answer(client, TEXT, text(suffix="")) == answer(client, TEXT, text())


def test_keys_of_messages_and_parts(client: TestClient) -> None:
    plain = answer(client, CHAT, chat())
    for table, make in ((fields.MESSAGE, with_message), (fields.PART, with_part)):
        neutral = {name: known.same[-1] if known.same else None for name, known in table.items()}
        assert answer(client, CHAT, make(**neutral, nobodys=None)) == plain
        for name, known in table.items():
            response = client.post(CHAT, json=make(**{name: ODD}))
            if not known.reason:
                assert response.json()["choices"] == plain
            else:
                assert refused(response)["param"].endswith(f".{name}")
    ephemeral = with_part(cache_control={"type": "ephemeral"})
    assert answer(client, CHAT, ephemeral) == plain
    assert answer(client, CHAT, with_message(id="msg_1")) == plain


def test_an_answer_can_be_sent_back(client: TestClient) -> None:
    """A client that keeps messages as they came sends all their keys back."""
    (choice,) = answer(client, CHAT, chat(dspark_tokens=True))
    again = [*chat()["messages"], choice["message"], *chat()["messages"]]
    bare = [*again]
    bare[1] = {"role": "assistant", "content": choice["message"]["content"]}
    found, expected = (answer(client, CHAT, chat(messages=m)) for m in (again, bare))
    assert found == expected


def test_an_assistant_may_have_said_nothing(client: TestClient) -> None:
    user = chat()["messages"]
    said = [{"role": "assistant", **more} for more in ({}, {"content": None}, {"content": ""})]
    answers = [answer(client, CHAT, chat(messages=[*user, each, *user])) for each in said]
    assert answers[0] == answers[1] == answers[2]
    for role in ("user", "system", "developer"):
        for content in ({}, {"content": None}):
            error = refused(client.post(CHAT, json=chat(messages=[{"role": role, **content}])))
            assert error["param"] == "messages[0].content"
            assert "required" in error["message"]


def test_tools_that_may_not_be_called(client: TestClient) -> None:
    plain = answer(client, CHAT, chat())
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert answer(client, CHAT, chat(tools=tools, tool_choice="none")) == plain
    assert answer(client, CHAT, chat(functions=[{"name": "f"}], function_call="none")) == plain
    for more in ({}, {"tool_choice": "auto"}, {"tool_choice": None}):
        assert refused(client.post(CHAT, json=chat(tools=tools, **more)))["param"] == "tools"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_usage_so_far(client: TestClient, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = body_of(path, stream=True, max_tokens=12, n=2, temperature=1, seed=1)
    chunks = events(client.post(path, json=body | {"stream_options": options}))
    plain = events(client.post(path, json=body | {"stream_options": {"include_usage": True}}))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert chunks[-1]["usage"] == plain[-1]["usage"]
    assert said(chunks) == said(plain)
    alone = {"continuous_usage_stats": True}  # as elsewhere, it needs the other
    assert all(
        "usage" not in c for c in events(client.post(path, json=body | {"stream_options": alone}))
    )


def said(chunks: list[dict[str, Any]]) -> list[str]:
    """Texts of the two answers of a stream."""
    texts = ["", ""]
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content", "")
    return texts


# ---- unknown ones ---------------------------------------------------------------------------

UNKNOWN: list[tuple[dict[str, Any], str]] = [
    (chat(nobodys=1), "nobodys"),
    (with_message(nobodys=1), "messages[0].nobodys"),
    (with_part(nobodys=1), "messages[0].content[0].nobodys"),
    (chat(stream=True, stream_options={"nobodys": 1}), "stream_options.nobodys"),
    (chat(response_format={"type": "text", "nobodys": 1}), "response_format.nobodys"),
]


@pytest.mark.parametrize(("body", "param"), UNKNOWN, ids=[param for _, param in UNKNOWN])
def test_unknown_fields(
    client: TestClient, lenient: TestClient, body: dict[str, Any], param: str
) -> None:
    error = refused(client.post(CHAT, json=body))
    assert (error["param"], error["code"]) == (param, "unknown_field")
    assert lenient.post(CHAT, json=body).status_code == 200


def test_ignoring_unknown_fields_lets_no_known_one_through(lenient: TestClient) -> None:
    assert refused(lenient.post(CHAT, json=chat(min_p=0.1)))["param"] == "min_p"
    assert refused(lenient.post(CHAT, json=with_message(name="me")))["param"] == "messages[0].name"
    plain = answer(lenient, CHAT, chat())
    assert answer(lenient, CHAT, chat(nobodys={"deep": [1]})) == plain


def test_the_page_on_serving_lists_them() -> None:
    text = DOCS.read_text(encoding="utf-8")
    tables = (fields.CHAT, fields.COMPLETION, fields.STREAM_OPTIONS, fields.MESSAGE, fields.PART)
    missing = {name for table in tables for name in table if f"`{name}`" not in text}
    assert missing == set()
