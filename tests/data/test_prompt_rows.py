"""Every verb reads rows of prompts in one way, and drops nothing of them in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import chat_templates
from dspark.calibration.prompts import choose_prompts
from dspark.data.bad_rows import BadRows
from dspark.data.prompt_rows import Prompt, all_prompt_ids, prompt_from_row, prompt_ids
from dspark.data.prompts import load_prompts, spread_prompts
from dspark.errors import ConfigError, DataError, DSparkError
from dspark.evaluation.cells import Dataset, questions_of
from dspark.targets.encoding import PromptEncoder
from fakes import write_jsonl

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": "{}"}}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


class FakeTarget:
    """A target that only encodes."""

    def __init__(self, family: str, context: int = 1000) -> None:
        tokenizer = chat_templates.families()[family]
        stops = frozenset([tokenizer.eos_token_id])
        self.prompts = PromptEncoder(tokenizer, "tiny", stops, context)
        self.max_positions, self.tokenizer = context, tokenizer
        self.encode_messages = self.prompts.messages


def test_a_conversation_goes_before_its_first_words() -> None:
    """The layout of ultrachat_200k."""
    messages = [user("Hi"), {"role": "assistant", "content": "Hello"}, user("And now?")]
    for extra in ({}, {"turns": ["Hi", "And now?"]}):
        row = {"prompt": "Hi", "prompt_id": "9", "messages": messages, **extra}
        assert prompt_from_row(row).messages == messages
    assert prompt_from_row({"prompt": "Hi", "turns": ["Other"]}).messages == [user("Hi")]
    assert prompt_from_row({"prompt": messages}).messages == messages


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_field_goes_before(key: str) -> None:
    system = {"role": "system", "content": "Be brief."}
    for fields in ({"prompt": "Hi"}, {"turns": ["Hi"]}, {"messages": [user("Hi")]}):
        assert prompt_from_row({key: "Be brief.", **fields}).messages == [system, user("Hi")]
    both = {key: "Be brief.", "messages": [system, user("Hi")]}
    assert prompt_from_row(both).messages == [system, user("Hi")]
    with pytest.raises(DataError, match=f"{key} is another text than the system message"):
        prompt_from_row(both | {key: "Be long."})
    assert prompt_from_row({key: "", "prompt": "Hi"}).messages == [user("Hi")]
    with pytest.raises(DataError, match=f"{key} must be a text"):
        prompt_from_row({key: 3, "prompt": "Hi"})


def test_tools_their_calls_and_results_are_kept() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "1", "name": "weather", "content": "sun"}
    row = {"messages": [user("Rome?"), called, result], "tools": [TOOL]}
    prompt = prompt_from_row(row)
    assert prompt.tools == [TOOL]
    assert prompt.messages == [user("Rome?"), called | {"content": ""}, result]
    assert prompt_from_row({"prompt": "a", "tools": json.dumps([TOOL])}).tools == [TOOL]
    assert prompt_from_row({"prompt": "a", "tools": []}).tools is None
    # What the answer depends on is in the name.
    assert (
        prompt_from_row({"prompt": "a", "tools": [TOOL]}).id != prompt_from_row({"prompt": "a"}).id
    )


def test_roles_and_parts_of_other_hands() -> None:
    parts = [{"type": "text", "text": "one "}, "two ", {"text": "three"}]
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    assert prompt_from_row({"messages": messages}).messages == [
        {"role": "system", "content": "x"},
        user("one two three"),
    ]


def test_empty_contents_stay_where_nobody_asks() -> None:
    messages = [
        {"role": "system", "content": ""},
        user("a"),
        {"role": "assistant", "content": ""},
        user("b"),
    ]
    assert prompt_from_row({"messages": messages}).messages == messages


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "functions": [TOOL]}, "functions cannot be used"),
        ({"prompt": "a", "documents": [{"text": "x"}]}, "documents cannot be used"),
        (
            {"prompt": "a", "chat_template_kwargs": {"enable_thinking": False}},
            "chat_template_kwargs",
        ),
        ({"prompt": "a", "images": ["x.png"]}, "images cannot be used"),
        ({"prompt": "a", "tools": "not json"}, "tools is not JSON"),
        ({"prompt": "a", "tools": {"name": "x"}}, "tools must be a list of objects"),
        ({"messages": [{**user("a"), "images": ["x"]}]}, r"messages\[0\]: images cannot be used"),
        ({"messages": [{**user("a"), "name": 3}]}, r"messages\[0\]: name must be a text"),
        ({"messages": [{**user("a"), "tool_calls": "x"}]}, "tool_calls must be a list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"content\[0\] is no text",
        ),
        ({"messages": [user([{"text": [{"text": "a"}]}])]}, "found: a text that is"),
        ({"messages": [{"role": "user", "content": [["a"]]}]}, r"content\[0\] is no text"),
        ({"messages": [user("a"), user(" ")]}, r"messages\[1\]: content is empty"),
        ({"messages": [{"role": "user", "content": []}]}, "content is empty"),
        ({"prompt": [user(" ")]}, r"prompt\[0\]: content is empty"),
    ],
)
def test_what_has_no_place_is_refused_by_name(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"p.jsonl:3: .*{message}"):
        prompt_from_row(row, "p.jsonl:3")


BAD = [
    b'{"id": "a", "prompt": "Hi"}',
    b'{"id": "b", "prompt": "caf\xe9"}',
    b'{"id": "c", "prompt": "x\\ud83d"}',
    b"not json",
    b'{"id": "d"}',
    b'{"id": "a", "prompt": "again"}',
    b'{"id": "e", "messages": [{"role": "user", "content": ""}]}',
    b'{"id": "f", "prompt": "Ho"}',
]


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b"\n".join(BAD))
    bad = BadRows("skip")
    assert [p.id for p in load_prompts(file, bad_rows=bad)] == ["a", "f"]
    assert bad.counts == {
        "is not UTF-8": 1,
        "holds half of a surrogate pair": 1,
        "is not JSON": 1,
        "has no prompt": 1,
        "rows have the same prompt id": 1,
        "messages: content is empty": 1,
    }
    line = bad.news() or ""
    assert line.startswith("6 bad rows skipped: ")
    assert f"1 x is not UTF-8 (first: {file}:2)" in line
    assert bad.news() is None
    for reader in (
        lambda: spread_prompts([file], bad_rows=BadRows("skip")),
        lambda: choose_prompts([file], bad_rows=BadRows("skip")),
    ):
        assert {prompt.id for prompt in reader()} == {"a", "f"}


@pytest.mark.parametrize("line", range(1, 7))
def test_a_bad_row_stops_with_its_line(tmp_path: Path, line: int) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b"\n".join([BAD[0], BAD[line]]))
    for mode in (None, BadRows(), BadRows("stop")):
        with pytest.raises(DataError, match=r"p.jsonl:2|lines 1 and 2"):
            load_prompts(file, bad_rows=mode)
    assert len(load_prompts(file, limit=1)) == 1  # nobody reads beyond the limit


def test_where_no_row_is_good_all_reasons_are_told(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "p.jsonl", [{"id": "a"}, {"id": "b"}, {"prompt": " "}])
    with pytest.raises(DataError, match=r"no prompt that can be used .found: 2 x has no prompt"):
        load_prompts(file, bad_rows=BadRows("skip"))
    with pytest.raises(ConfigError, match="Use stop or skip"):
        BadRows("ignore")


def test_a_template_that_takes_a_row_badly_makes_it_a_bad_row() -> None:
    target: Any = FakeTarget("gemma")
    prompts = [
        prompt_from_row({"id": "a", "prompt": "Hi"}, "p.jsonl:1"),
        prompt_from_row({"id": "b", "prompt": "Hi", "system": "x"}, "p.jsonl:2"),
        prompt_from_row({"id": "c", "prompt": "Hi", "tools": [TOOL]}, "p.jsonl:3"),
    ]
    with pytest.raises(DataError, match=r"p.jsonl:2: The chat template of tiny refuses.*System"):
        prompt_ids(target, prompts[1], BadRows())
    bad = BadRows("skip")
    assert [prompt.id for prompt, _ in all_prompt_ids(target, prompts, bad)] == ["a"]
    assert bad.counts == {
        "The chat template of tiny refuses this conversation": 1,
        "The chat template of tiny has no place for tools": 1,
    }
    questions = questions_of(target, Dataset("d", prompts), 0, BadRows("skip"))
    assert [question.id for question in questions] == ["a"]
    with pytest.raises(DSparkError, match=r"p.jsonl:2"):
        questions_of(target, Dataset("d", prompts), 0)


def test_tools_reach_the_template() -> None:
    target: Any = FakeTarget("qwen3")
    plain, tooled = (
        prompt_ids(target, Prompt("a", [user("Hi")], tools=tools), BadRows())
        for tools in (None, [TOOL])
    )
    assert plain is not None
    assert tooled is not None
    assert "weather" in target.tokenizer.decode(tooled)
    assert "weather" not in target.tokenizer.decode(plain)


def test_prompts_that_are_too_long_are_bad_rows_where_all_are_needed() -> None:
    target: Any = FakeTarget("chatml", context=60)
    prompts = [
        Prompt("a", [user("Hi")], place="p:1"),
        Prompt("b", [user("long " * 80)], place="p:2"),
    ]
    with pytest.raises(DataError, match="p:2: The prompt is longer"):
        all_prompt_ids(target, prompts, BadRows())
    assert [p.id for p, _ in all_prompt_ids(target, prompts, BadRows("skip"))] == ["a"]
    with pytest.raises(DataError, match=r"no prompt is left .found: 1 x The prompt is longer"):
        all_prompt_ids(target, prompts[1:], BadRows("skip"))


def test_files_of_odd_hands(tmp_path: Path) -> None:
    """A mark in front, line ends of two kinds, blank lines, odd characters, a very long line."""
    texts = [
        "caf\u00e9",
        "a\r\nb",
        "a\x00b",
        "\U0001f600 e\u0301\u200d",
        "a\u2028b\u0085c",
        "\ufeffhi",
    ]
    texts.append("long " * 200_000)
    rows = [json.dumps({"id": str(n), "prompt": text}) for n, text in enumerate(texts)]
    rows[0] = json.dumps({"id": "0", "prompt": texts[0]}, ensure_ascii=False)
    file = tmp_path / "p.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n\n \n".join(rows).encode())
    assert [prompt.text for prompt in load_prompts(file)] == texts
