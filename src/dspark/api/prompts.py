"""Prompts as callers write them, one or several, and as the engine takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dspark.core import SamplingParams
from dspark.errors import RequestError
from dspark.targets.target import Target

Prompt = str | list[int]
Prompts = list[str] | list[list[int]]
Conversation = list[dict[str, Any]]
Params = SamplingParams | Sequence[SamplingParams] | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What one call asks for.

    Attributes:
        prompts: token ids and parameters of each prompt.
        one: the caller gave one prompt, and no list of them.
    """

    prompts: list[tuple[list[int], SamplingParams]]
    one: bool

    @contextmanager
    def naming(self, number: int) -> Iterator[None]:
        """Around work on a prompt: an error of one among several says which it is, from 0."""
        try:
            yield
        except RequestError as error:
            if self.one:
                raise
            what = f"prompts[{number}]: {error.what}"
            raise type(error)(what, found=error.found, fix=error.fix) from error


def asked_prompts(target: Target, prompts: Any, params: Any, raw: bool) -> Asked:
    """Texts and token ids.

    Args:
        prompts: a text, token ids, or a list of these.
        params: for all prompts, or one for each.
        raw: take texts as they are; otherwise each is one user turn of the chat template.

    Raises:
        RequestError: one is neither text nor token ids, is empty, or leaves no room to answer; or
            the parameters do not fit.
    """

    def encode(prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return target.encode(prompt, raw=raw)
        if _is_list(prompt) and all(map(_is_id, prompt)):
            return list(prompt)
        raise RequestError(
            "A prompt is neither text nor token ids",
            found=type(prompt).__name__,
            fix="Give a string or a list of whole numbers; messages go to `chat`",
        )

    one = not _is_list(prompts) or (bool(prompts) and _is_id(prompts[0]))
    return _asked([prompts] if one else prompts, one, encode, params)


def asked_conversations(target: Target, messages: Any, params: Any, tools: Any) -> Asked:
    """Conversations.

    Args:
        messages: of one conversation, or a list of conversations.
        params: for all of them, or one for each.
        tools: descriptions for the chat template.

    Raises:
        RequestError: one is no list of messages, the chat template refuses it, or it leaves no room
            to answer; or the parameters do not fit.
    """

    def encode(messages: Any) -> list[int]:
        if _is_list(messages) and messages and all(isinstance(m, Mapping) for m in messages):
            return target.encode_messages(messages, tools)
        raise RequestError(
            "A conversation is no list of messages",
            found=type(messages).__name__ if messages else "an empty one",
            fix='Write [{"role": "user", "content": "..."}]',
        )

    one = not (_is_list(messages) and messages and _is_list(messages[0]))
    return _asked([messages] if one else messages, one, encode, params)


def _asked(
    prompts: Sequence[Any], one: bool, encode: Callable[[Any], list[int]], params: Any
) -> Asked:
    each = _params_of_each(params, len(prompts))
    asked = Asked([], one)
    for number, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
        with asked.naming(number):
            asked.prompts.append((encode(prompt), own))
    return asked


def _params_of_each(params: Any, count: int) -> list[SamplingParams]:
    each = list(params) if _is_list(params) else [params or SamplingParams()] * count
    for one in each:
        if not isinstance(one, SamplingParams):
            raise RequestError(
                "The parameters are of another type",
                found=type(one).__name__,
                fix="Give SamplingParams(...), or a list with one for each prompt",
            )
    if len(each) != count:
        raise RequestError(
            "There must be as many parameters as prompts",
            found=f"{count} prompts, {len(each)} parameters",
            fix="Give one SamplingParams for all, or one for each prompt",
        )
    return each


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
