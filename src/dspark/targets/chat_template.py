"""Chat templates: rendered, checked, and rewritten so that their own control tokens are known.

Templates are programs in jinja2 that come with a target. Whatever goes wrong in one is told in one
line with the template's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dspark.errors import CheckpointError, RequestError
from dspark.targets.control_tokens import ControlTokens

Messages = Sequence[Mapping[str, Any]]

# Methods and filters that look for their first argument in a text and never put it out.
_SEARCHES = {
    *("split", "rsplit", "startswith", "endswith", "find", "rfind", "index", "rindex", "count"),
    *("replace", "strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "trim"),
}
_COMPARES = frozenset(("in", "not", "==", "!="))


def render(
    tokenizer: Any,
    name: str,
    source: str,
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text that a template makes of a conversation, up to where the assistant speaks.

    Args:
        name: of the target, for messages.
        source: of the template.
        variables: what the template may read besides, such as `bos_token`.

    Raises:
        RequestError: the template refuses the conversation, or fails on it.
    """
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=None if tools is None else list(tools),
            chat_template=source,
            add_generation_prompt=True,
            tokenize=False,
            **dict(variables or {}),
        )
    except TemplateError as error:
        if type(error) is TemplateError:  # what `raise_exception` raises
            raise RequestError(
                f"The chat template of {name} refuses this conversation",
                found=_cause(error, kind=False),
                fix="Change the messages",
            ) from error
        raise _failure(name, error) from error
    except Exception as error:  # a template can do whatever an expression can
        raise _failure(name, error) from error
    return str(text)


def check(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer whose chat templates cannot be read.

    Raises:
        CheckpointError: with the line of the mistake.
    """
    if not (found := sources(tokenizer)):
        return
    from jinja2 import TemplateSyntaxError

    for source in found:
        try:
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "a"}], chat_template=source, tokenize=False
            )
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"The chat template of {name} cannot be read",
                found=f"line {error.lineno}: {_cause(error, kind=False)}",
                fix="Mend chat_template.jinja, or chat_template in tokenizer_config.json",
            ) from error
        except Exception:  # this conversation does not suit it; others may
            continue


def sources(tokenizer: Any) -> list[str]:
    """Sources of all chat templates that a tokenizer has."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        return [str(source) for source in found.values()]
    return [str(found)] if found else []


def marked_source(source: str, control: ControlTokens) -> str:
    """The template with marks in place of the control tokens that it writes.

    Those that it only looks for in a text, as in `'</think>' in content`, stay what they are.
    """
    from jinja2 import Environment

    # Every token with its white space, so that together they are the source.
    tokens = list(Environment(keep_trailing_newline=True).lex(source))
    solid = [(kind, value) for _, kind, value in tokens if kind != "whitespace"]
    parts, place = [], -1
    for _, kind, value in tokens:
        place += kind != "whitespace"
        writes = kind == "data" or (kind == "string" and not _searched(solid, place))
        parts.append(control.marked(value) if writes else value)
    return "".join(parts)


def _searched(tokens: list[tuple[str, str]], place: int) -> bool:
    """Whether a string constant is only looked for, or compared with."""
    before = [value for _, value in tokens[max(0, place - 2) : place]]
    after = tokens[place + 1][1] if place + 1 < len(tokens) else ""
    if after in _COMPARES or (before[-1:] and before[-1] in _COMPARES):
        return True
    return len(before) == 2 and before[1] == "(" and before[0] in _SEARCHES


def _failure(name: str, error: Exception) -> RequestError:
    return RequestError(
        f"The chat template of {name} fails on this conversation",
        found=_cause(error),
        fix="Give what the template needs (roles, tools), or mend the template",
    )


def _cause(error: Exception, kind: bool = True) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if kind else text
