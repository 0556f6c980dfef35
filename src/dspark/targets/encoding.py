"""Conversations and bare texts to token ids: what people write is text, whatever it spells.

A chat template makes one text of a conversation, with its own control tokens between what people
wrote. Two ways keep the two apart, the second where the first cannot tell:

1. The template is rewritten so that it writes marks for its control tokens
   (`chat_template.marked_source`). A spelling in what it gives then comes from a text.
2. Spellings in the texts are replaced by characters that occur nowhere else, and put back after.
   A template that looks for them, as for `</think>`, does not find them then.

Both are checked against the template as it is, and a conversation that neither keeps apart is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from dspark.errors import PromptTooLongError, RequestError
from dspark.targets.chat_template import Messages, marked_source, render, sources
from dspark.targets.control_tokens import ControlTokens

Tools = Sequence[Mapping[str, Any]] | None
# Keys of messages and tools whose values or names the template compares; nobody's text.
_NAMES = {
    *("role", "type", "content", "text", "name", "function", "tool_calls", "tool_call_id", "id"),
    *("arguments", "parameters", "description", "properties", "required", "enum"),
    *("reasoning_content", "reasoning", "thinking"),
}
_PRIVATE = 0xF0000  # first character of a plane without meanings


class PromptEncoder:
    """Makes token ids of prompts for one target.

    Args:
        tokenizer: the target's Hugging Face tokenizer.
        name: the target's, for messages.
        stop_ids: tokens that end its answers.
        max_positions: its context, in tokens.
    """

    def __init__(
        self, tokenizer: Any, name: str, stop_ids: frozenset[int], max_positions: int
    ) -> None:
        self.tokenizer, self.name, self.max_positions = tokenizer, name, max_positions
        self._control = ControlTokens(tokenizer, sources(tokenizer), stop_ids)
        self._marked: dict[str, str] = {}  # templates, rewritten
        self._used: set[tuple[str, str]] = set()  # what a template is known to read
        special = getattr(tokenizer, "special_tokens_map", None) or {}
        self._variables = {
            name: self._control.marked(text)
            for name, text in special.items()
            if isinstance(text, str)
        }

    def text(self, text: str, parse_special: bool = False) -> list[int]:
        """Ids of a bare text.

        Args:
            parse_special: read spellings of control tokens as those tokens.

        Raises:
            RequestError: it has no tokens, or cannot be encoded.
            PromptTooLongError: it leaves no room to answer.
        """
        if parse_special:
            ids = list(self.tokenizer(text, verbose=False)["input_ids"])  # too long is said below
        else:
            ids = self._control.encode_text(text)
        return self._fitting(ids)

    def messages(self, messages: Messages, tools: Tools = None) -> list[int]:
        """Ids of a conversation up to the point where the assistant speaks.

        Without a chat template, the texts of the messages, a line each.

        Raises:
            RequestError: the template refuses it, fails, or has no place for a part of it.
            PromptTooLongError: it leaves no room to answer.
        """
        given = [_without_nulls(message) for message in messages]
        tools = list(tools) if tools else None
        if not sources(self.tokenizer):
            return self.text(self._lines(given, tools))
        source = self._source(tools)
        return self._fitting(self._control.encode(self._rendered(source, given, tools)))

    # ---- the two ways --------------------------------------------------------------------------

    def _rendered(self, source: str, messages: list[dict[str, Any]], tools: Tools) -> str:
        """What the template makes of a conversation, its control tokens as marks."""
        messages, plain = self._readable(source, messages, tools)
        control = self._control
        if source not in self._marked:
            self._marked[source] = marked_source(source, control)
        marked = self._marked[source]
        try:
            text = self._render(marked, messages, tools, self._variables)
            if control.unmarked(text) == plain:
                if not control.spelled(text):
                    return text
                blank, _ = self._changed(messages, tools, control.characters, _letters)
                if not control.spelled(self._render(marked, *blank, self._variables)):
                    return text
        except RequestError:  # it looks for what was rewritten
            pass
        return self._neutralised(source, messages, tools)

    def _neutralised(self, source: str, messages: list[dict[str, Any]], tools: Tools) -> str:
        """The same by keeping spellings out of the texts until the template is through."""
        control = self._control
        blank, _ = self._changed(messages, tools, control.characters, _letters)
        spelled = {s for text in _texts([messages, tools]) for s in control.spelled(text)}
        neutral, by = self._changed(messages, tools, spelled, control.replaced)
        text = self._render(source, *neutral)
        escaped = [char for char in by.values() if json.dumps(char)[1:-1] in text]
        if escaped or control.spelled(text) != control.spelled(self._render(source, *blank)):
            raise RequestError(
                f"A message spells a control token, which the chat template of {self.name} "
                "does not keep apart",
                found=next(iter(spelled), None),
                fix="Write it otherwise",
            )
        text = control.marked(text)
        for spelling, char in by.items():
            text = text.replace(char, spelling)
        return text

    def _changed(
        self,
        messages: list[dict[str, Any]],
        tools: Tools,
        wanted: set[str],
        replaced: Callable[[str, dict[str, str]], str],
    ) -> tuple[tuple[list[dict[str, Any]], Tools], dict[str, str]]:
        """A conversation with characters that occur nowhere in place of wanted pieces."""
        seen = set("".join(_texts([messages, tools])))
        free = (chr(_PRIVATE + n) for n in count() if chr(_PRIVATE + n) not in seen)
        by = {piece: next(free) for piece in sorted(wanted)}
        change = _each_text([messages, tools], lambda text: replaced(text, by))
        return (change[0], change[1]), by

    # ---- what a template reads -----------------------------------------------------------------

    def _readable(
        self, source: str, messages: list[dict[str, Any]], tools: Tools
    ) -> tuple[list[dict[str, Any]], str]:
        """The conversation in the shape that the template reads, and what it makes of it.

        Raises:
            RequestError: it leaves out a part that is there.
        """
        if (source, "parts") in self._used:
            messages = _in_parts(messages)
        plain = self._render(source, messages, tools)
        for part, changed in _alterations(messages, tools):
            if (source, part) in self._used or self._reads(source, plain, changed):
                self._used.add((source, part))
                continue
            parts = _in_parts(messages)
            if part == "the user's text" and messages != parts:  # it may want lists of parts
                self._used.add((source, "parts"))
                return self._readable(source, messages, tools)
            raise RequestError(
                f"The chat template of {self.name} has no place for {part}",
                fix="Leave them out, or use a target whose template reads them",
            )
        return messages, plain

    def _reads(self, source: str, plain: str, changed: tuple[list[dict[str, Any]], Tools]) -> bool:
        try:
            return self._render(source, *changed) != plain
        except RequestError:
            return True

    def _render(
        self,
        source: str,
        messages: list[dict[str, Any]],
        tools: Tools,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        return render(self.tokenizer, self.name, source, messages, tools, variables)

    def _source(self, tools: Tools) -> str:
        """Source of the template for a conversation with or without tools."""
        try:
            return str(self.tokenizer.get_chat_template(None, tools))
        except ValueError as error:  # several, and none of them is the default
            raise RequestError(
                f"{self.name} has no default chat template",
                found=", ".join(self.tokenizer.chat_template),
                fix="Name one of its templates `default`",
            ) from error

    def _lines(self, messages: list[dict[str, Any]], tools: Tools) -> str:
        for part, _ in _alterations(messages, tools):
            if part not in ("the user's text", "system messages"):
                raise RequestError(
                    f"{self.name} has no chat template, and so no place for {part}",
                    fix="Leave them out",
                )
        return "\n".join(str(message.get("content", "")) for message in messages)

    def _fitting(self, ids: list[int]) -> list[int]:
        if not ids:
            raise RequestError("The prompt has no tokens", fix="Give at least one word")
        if len(ids) >= self.max_positions:
            raise PromptTooLongError(
                "The prompt is longer than the target's context",
                found=f"{len(ids)} tokens, context {self.max_positions}",
                fix="Shorten it",
            )
        return ids


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without empty fields; its content is always a text."""
    return {"role": "", "content": ""} | {k: v for k, v in message.items() if v is not None}


def _letters(text: str, by: dict[str, str]) -> str:
    """The text with single characters replaced, in either case."""
    table = {
        ord(form): new
        for old, new in by.items()
        for form in {old, old.lower(), old.upper()}
        if len(form) == 1
    }
    return text.translate(table)


def _texts(value: Any) -> list[str]:
    """Every text in a conversation."""
    found: list[str] = []
    _each_text(value, lambda text: found.append(text) or text)  # type: ignore[func-returns-value]
    return found


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A conversation with its texts changed; roles and types are not texts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            key if key in _NAMES or not isinstance(key, str) else change(key): item
            if key in ("role", "type") and isinstance(item, str) and item.isidentifier()
            else _each_text(item, change)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_each_text(item, change) for item in value]
    return value


def _in_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose contents are lists of parts."""
    return [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in messages
    ]


def _alterations(
    messages: list[dict[str, Any]], tools: Tools
) -> list[tuple[str, tuple[list[dict[str, Any]], Tools]]]:
    """Each kind of part that a conversation has, and the conversation with that part altered.

    A template that makes the same text of both does not read the part.
    """
    found = []

    def altered(part: str, key: str, roles: set[str], where: list[dict[str, Any]]) -> None:
        if any(message["role"] in roles and message.get(key) for message in where):
            changed = [
                message | {key: _each_text(message[key], lambda text: text + "?")}
                if message["role"] in roles and message.get(key)
                else message
                for message in messages
            ]
            found.append((part, (changed, tools)))

    every = {message["role"] for message in messages}
    altered("the user's text", "content", {"user"}, messages[-1:])
    altered("system messages", "content", {"system"}, messages)
    altered("tool results", "content", {"tool"}, messages)
    altered("names of speakers", "name", every - {"tool"}, messages)
    altered("tool calls", "tool_calls", every, messages)
    if tools:
        found.append(("tools", (messages, None)))
    return found
