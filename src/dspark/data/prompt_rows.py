"""One row of a prompt file as a prompt: every verb that reads prompts reads them here.

A row holds its text in one of three fields; where there are several, the first of this list counts:

    {"messages": [{"role": "user", "content": "…"}]}  a conversation up to its last user message
    {"prompt": "…"}                                   one user message, or a list of messages
    {"turns": ["…", "…"]}                             what a user says, turn by turn

Of `turns` the first is the prompt; only conversations (`dspark regenerate --turns`) go on to the
rest.

`system` (or `system_prompt`) is a text that goes before, `tools` a list of functions. What else
would change the prompt, such as `documents` or images, is refused by name. `id`, `domain`,
`source`, `dataset` and `license` are optional texts; other fields are ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dspark.data.bad_rows import BadRows
from dspark.errors import DataError, PromptTooLongError, RequestError

if TYPE_CHECKING:
    from dspark.targets.target import Target

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
_SAME_ROLE = {"developer": "system", "function": "tool"}
# What a chat template may read, besides role and content.
_PASSED = ("name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking")
_MESSAGE_REFUSED = ("function_call", "audio", "images", "image", "video", "refusal")
_ROW_REFUSED = (
    *("functions", "function_call", "documents", "chat_template", "chat_template_kwargs"),
    *("images", "image", "audio", "audios", "video", "videos"),
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready for a chat template.

    Attributes:
        id: unique within its source; made from the messages when the row has none.
        messages: `{"role", "content"}` and what else a template may read; contents are texts, and
            the last message is the user's or a tool's.
        domain: what kind of work it is, such as "math"; "" when unknown.
        source: where the text comes from; "" when unknown.
        dataset: evaluation set it belongs to; "" when none.
        license: of the text; "" when unknown.
        tools: functions that the assistant may call; None for none.
        later: what the user says after the completion, one message a turn.
        place: where it was read, as in `prompts.jsonl:17`; "" when nowhere.
    """

    id: str
    messages: list[Message]
    domain: str = ""
    source: str = ""
    dataset: str = ""
    license: str = ""
    tools: list[dict[str, Any]] | None = None
    later: tuple[Message, ...] = ()
    place: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """The user's last message."""
        return str(self.messages[-1]["content"])

    @property
    def conversation(self) -> Any:
        """What the completion depends on, as JSON values: the messages, and tools if any."""
        if self.tools:
            return {"messages": self.messages, "tools": self.tools}
        return self.messages


def prompt_from_row(row: dict[str, Any], where: str = "the row") -> Prompt:
    """Build a prompt from one JSON object; `where` names it in messages.

    Raises:
        DataError: no text field, a field of the wrong type, or one that has no place in a prompt.
    """
    for key in _ROW_REFUSED:
        if row.get(key):
            raise DataError(f"{where}: {key} cannot be used", fix="Take the field out")
    messages, tools = _messages(row, where), _tools(row.get("tools"), where)
    given = row.get("id")
    if given is None:
        name = _content_id(messages, tools)
    elif isinstance(given, (str, int)) and not isinstance(given, bool) and str(given).strip():
        name = str(given)
    else:
        raise DataError(f"{where}: id must be a text or a whole number", found=repr(given))
    labels = {}
    for key in ("domain", "source", "dataset", "license"):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {key} must be a text", found=type(value).__name__)
        labels[key] = value or ""
    return Prompt(name, messages, **labels, tools=tools, later=_later(row, where), place=where)


def prompt_ids(
    target: Target, prompt: Prompt, bad_rows: BadRows, messages: Sequence[Message] | None = None
) -> list[int] | None:
    """Token ids of a prompt; None for one that is skipped as a bad row.

    Args:
        messages: in place of the prompt's own.

    Raises:
        PromptTooLongError: the target's context is too short for it.
        DataError: the target cannot take it, and bad rows stop the work.
    """
    try:
        return target.encode_messages(
            prompt.messages if messages is None else messages, prompt.tools
        )
    except PromptTooLongError:
        raise
    except RequestError as error:
        bad_rows.meet(error, prompt.place or f"prompt {prompt.id}")
        return None


def all_prompt_ids(
    target: Target, prompts: Iterable[Prompt], bad_rows: BadRows
) -> list[tuple[Prompt, list[int]]]:
    """Prompts with their token ids; one that is too long counts as a bad row.

    Raises:
        DataError: a prompt cannot be used and bad rows stop the work, or none is left.
    """
    found = []
    for prompt in prompts:
        try:
            ids = prompt_ids(target, prompt, bad_rows)
        except PromptTooLongError as error:
            bad_rows.meet(error, prompt.place or f"prompt {prompt.id}")
            continue
        if ids is not None:
            found.append((prompt, ids))
    if not found:
        raise DataError("no prompt is left", found=bad_rows.summary() or "none was given")
    return found


# ---- the fields of a row -----------------------------------------------------------------------


def _messages(row: dict[str, Any], where: str) -> list[Message]:
    if row.get("messages") is not None:
        messages = _conversation(row["messages"], where, "messages")
    elif isinstance(row.get("prompt"), list):
        messages = _conversation(row["prompt"], where, "prompt")
    elif row.get("prompt") is not None:
        messages = [{"role": "user", "content": _asked(row["prompt"], f"{where}: prompt")}]
    elif row.get("turns") is not None:
        turns = row["turns"]
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{where}: turns must be a list of texts, not empty", found=repr(turns))
        messages = [{"role": "user", "content": _asked(turns[0], f"{where}: turns[0]")}]
    else:
        raise DataError(
            f"{where} has no prompt",
            found=f"fields {', '.join(row) or 'none'}",
            fix='Give "messages" (role and content), a "prompt" (text) or "turns" (list of texts)',
        )
    return _with_system(row, messages, where)


def _later(row: dict[str, Any], where: str) -> tuple[Message, ...]:
    """What the user says in `turns` after the first of them, where these are the prompt."""
    if any(row.get(key) is not None for key in ("messages", "prompt")):
        return ()
    texts = [_asked(text, f"{where}: turns[{n}]") for n, text in enumerate(row["turns"])]
    return tuple({"role": "user", "content": text} for text in texts[1:])


def _with_system(row: dict[str, Any], messages: list[Message], where: str) -> list[Message]:
    """The messages with the row's own system text before them."""
    for key in ("system", "system_prompt"):
        if row.get(key) is None:
            continue
        text = _content(row[key], f"{where}: {key}")
        if messages[0]["role"] == "system":
            if messages[0]["content"] != text:
                raise DataError(
                    f"{where}: {key} is another text than the system message",
                    fix="Take one of the two out",
                )
        elif text:
            messages = [{"role": "system", "content": text}, *messages]
    return messages


def _conversation(value: object, where: str, key: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {key} must be a list, not empty", found=repr(value))
    messages = [_message(m, f"{where}: {key}[{index}]") for index, m in enumerate(value)]
    # The completion is what we are going to make.
    while messages and messages[-1]["role"] not in ("user", "tool"):
        messages.pop()
    if not messages:
        raise DataError(f"{where}: {key} holds nothing from the user", fix='Add a "user" message')
    if messages[-1]["role"] == "user":
        _asked(messages[-1]["content"], f"{where}: {key}[{len(messages) - 1}]: content")
    return messages


def _message(message: object, here: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{here} must be an object", found=type(message).__name__)
    role = message.get("role")
    role = _SAME_ROLE.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise DataError(
            f"{here} has an unknown role",
            found=repr(message.get("role")),
            fix=f"Use one of {', '.join(ROLES)}",
        )
    for key in _MESSAGE_REFUSED:
        if message.get(key):
            raise DataError(f"{here}: {key} cannot be used", fix="Take the field out")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""  # OpenAI's form of a message that only calls
    passed = {key: message[key] for key in _PASSED if message.get(key)}
    _check_passed(passed, here)
    return {"role": role, "content": _content(content, f"{here}: content"), **passed}


def _check_passed(fields: dict[str, Any], here: str) -> None:
    for key, value in fields.items():
        if key != "tool_calls" and not isinstance(value, str):
            raise DataError(f"{here}: {key} must be a text", found=type(value).__name__)
    calls = fields.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise DataError(f"{here}: tool_calls must be a list of objects", found=repr(calls)[:60])


def _content(value: object, where: str) -> str:
    """A text, or a list of parts that are texts, put end to end."""
    if isinstance(value, list):
        return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))
    if not isinstance(value, str):
        raise DataError(f"{where} must be a text", found=type(value).__name__)
    return value


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    fix = "Only text parts can be used"
    if not isinstance(part, dict):
        raise DataError(f"{where} is no text", found=type(part).__name__, fix=fix)
    if (kind := part.get("type", "text")) != "text":
        raise DataError(f"{where} is no text", found=f"type {kind!r}", fix=fix)
    if not isinstance(text := part.get("text"), str):
        raise DataError(f"{where} is no text", found=f"a text that is {text!r:.40}", fix=fix)
    return text


def _asked(value: object, where: str) -> str:
    """What is to be completed: a text that is not blank."""
    text = _content(value, where)
    if not text.strip():
        raise DataError(f"{where} is empty", fix="Write something or take the row out")
    return text


def _tools(value: object, where: str) -> list[dict[str, Any]] | None:
    """The functions of a row; some data sets keep them as JSON in a text."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{where}: tools is not JSON", found=error) from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"{where}: tools must be a list of objects", found=repr(value)[:60])
    return value


def _content_id(messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
    """A name that follows from the text alone, the same on every machine and in every run."""
    asked = Prompt("", messages, tools=tools).conversation
    canonical = json.dumps(asked, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    # A lone surrogate, which JSON can spell, has no UTF-8 form; any fixed bytes for it will do.
    return "prompt-" + hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()[:16]
