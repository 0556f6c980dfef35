"""The tokenizer without transformers gives what the Hugging Face one gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from dspark.targets import light_template, light_tokenizer
from dspark.targets.light_tokenizer import LightTokenizer
from fakes import tiny_target_folder

USER = {"role": "user", "content": "Caf\u00e9 <b> & 'x'?\n"}
CALL = {"function": {"name": "f", "arguments": {"a": [1, None, "\u00e9"]}}, "type": "function"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, USER],
    [USER, {"role": "assistant", "content": "Yes.", "reasoning": "Hm."}, USER],
    [{"role": "user", "content": [{"type": "text", "text": "in parts"}]}],
]
TEMPLATES = {
    "plain": "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}",
    "json": "{{ messages | tojson }}{{ tools | tojson(indent=2) if tools }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "loops": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "  {{ m.content }}\n    {% endfor %}\n{% if add_generation_prompt %}\nassistant{% endif %}",
    "names": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{{ dict(a=1) }}{{ own is defined }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}{% endfor %}",
    "strict": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    "broken": "{{ messages.nothing.more }}",
    "escape": "{{ messages.__class__ }}{{ ''.__class__.__mro__ }}",
    "underscore": "{% set ns = namespace(_x=1) %}{{ ns._x }}",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny_target_folder(tmp_path_factory.mktemp("t"), layers=1))


@pytest.fixture
def light(whole: Any) -> LightTokenizer:
    told = light_tokenizer.describe(whole)
    assert told is not None

    def fail() -> Any:
        raise AssertionError("the Hugging Face tokenizer is not needed")

    return light_tokenizer.restore(*told, fail)


def rendered(tokenizer: Any, messages: Any, **more: Any) -> tuple[str, str]:
    try:
        return "text", tokenizer.apply_chat_template(messages, tokenize=False, **more)
    except Exception as error:
        return "error", type(error).__name__


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_templates(whole: Any, light: LightTokenizer, name: str, prompt: bool) -> None:
    for messages in CONVERSATIONS:
        for tools in (None, [TOOL]):
            more = {"chat_template": TEMPLATES[name], "add_generation_prompt": prompt}
            found = rendered(light, messages, tools=tools, **more)
            assert found == rendered(whole, messages, tools=tools, **more)


def test_a_refusal_keeps_its_words(light: LightTokenizer) -> None:
    with pytest.raises(TemplateError, match="no system"):
        light.apply_chat_template(CONVERSATIONS[1], chat_template=TEMPLATES["strict"])


def test_templates_see_plain_values() -> None:
    source = "{{ messages[0].content }}"
    strange = [{"role": "user", "content": Path("x")}]
    assert light_template.render(source, strange, None, False, {}) == f"<{type(Path()).__name__}>"


@pytest.mark.parametrize("text", ["", "Hello, world", "  two  \n", "<s>a</s>", "\u00e9\U0001f600"])
def test_texts(whole: Any, light: LightTokenizer, text: str) -> None:
    for around in (True, False):
        ids = list(whole(text, add_special_tokens=around)["input_ids"])
        assert light(text, add_special_tokens=around)["input_ids"] == ids
        for skip in (True, False):
            assert light.decode(ids, skip_special_tokens=skip) == whole.decode(
                ids, skip_special_tokens=skip
            )


def test_names_and_numbers(whole: Any, light: LightTokenizer) -> None:
    for name in ("eos_token", "eos_token_id", "unk_token_id", "all_special_tokens"):
        assert getattr(light, name) == getattr(whole, name)
    assert light.added_tokens_decoder == whole.added_tokens_decoder
    assert len(light) == len(whole)
    names = [*whole.all_special_tokens, "a", "no such token"]
    assert light.convert_tokens_to_ids(names) == whole.convert_tokens_to_ids(names)
    ids = list(range(len(whole)))
    assert light.convert_ids_to_tokens(ids) == whole.convert_ids_to_tokens(ids)
    assert light.get_chat_template() == whole.get_chat_template()


def test_several_templates(whole: Any) -> None:
    light = LightTokenizer(
        whole.backend_tokenizer, {"chat_template": {"default": "d", "tool_use": "t"}}, lambda: None
    )
    assert light.get_chat_template() == "d"
    assert light.get_chat_template(None, [TOOL]) == "t"
    assert light.get_chat_template("tool_use") == "t"
    light.chat_template = {"other": "o"}
    with pytest.raises(ValueError, match="default"):
        light.get_chat_template()


def test_what_it_does_not_know_the_whole_one_does(whole: Any) -> None:
    told = light_tokenizer.describe(whole)
    assert told is not None
    light = light_tokenizer.restore(*told, lambda: whole)
    assert light(["a", "b"])["input_ids"] == whole(["a", "b"])["input_ids"]
    assert light.padding_side == whole.padding_side


def test_a_tokenizer_that_does_otherwise_is_not_replaced(
    whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(whole), "decode", lambda self, ids, **more: "something else")
    assert light_tokenizer.describe(whole) is None
    assert light_tokenizer.describe(object()) is None
