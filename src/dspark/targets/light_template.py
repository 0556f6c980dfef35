"""Chat templates rendered by jinja2 alone, as transformers renders them.

A template is a program that comes with a target: it runs in jinja2's sandbox and sees plain values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Names that a message's reasoning goes by; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    """The text that a template makes of a conversation.

    Raises:
        jinja2.TemplateError: it refuses the conversation, or fails on it.
    """
    return _compiled(source).render(
        messages=[_message(message) for message in messages],
        tools=None if tools is None else _plain(list(tools)),
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **_plain(dict(variables)),
    )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without empty fields, its reasoning under every name that templates read."""
    found: dict[str, Any] = _plain({k: v for k, v in message.items() if v is not None})
    reasoning = next((found[key] for key in _REASONING if found.get(key) is not None), None)
    if reasoning is None:
        return found
    return {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """A value of nothing but JSON's types: methods of others could do harm."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return f"<{type(value).__name__}>"


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it only stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Names(Namespace):
    """A namespace whose names cannot reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be one of the names
        own, rest = args[0], args[1:]
        names = dict(*rest, **kwargs)
        for name in names:
            _Names._check(name)
        Namespace.__init__(own, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _Names._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"A chat template may not set {name!r}")


class _Dictionaries:
    """`dict` as templates may use it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own would escape for HTML.
    options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@lru_cache(64)
def _compiled(source: str) -> Any:
    extensions = [_Generation, "jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dictionaries(),
        "namespace": _Names,
    }
    return environment.from_string(source)
