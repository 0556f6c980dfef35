"""Conversations of several turns, every completion of which the target gives itself, in order.

Of a prompt only what its user says is taken: completions that others wrote are left out. The prompt
of a turn is the conversation so far under the chat template, as it would be served; its row says
the turn's number, so that a run that was killed goes on behind the last completion in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.data.prompt_rows import Message
from dspark.data.prompts import Prompt
from dspark.data.responses import ResponseRow
from dspark.errors import DataError


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation that waits for its next completion.

    Attributes:
        messages: all so far; the last is the user's.
        later: what the user says afterwards, one message a turn.
        turn: number of the completion that is next, from 0; None outside of conversations.
    """

    prompt: Prompt
    messages: list[Message]
    later: tuple[Message, ...] = ()
    turn: int | None = None

    def after(self, completion: str) -> Talk | None:
        """The conversation with its next completion given; None where the user says no more."""
        if self.turn is None or not self.later:
            return None
        messages = [*self.messages, {"role": "assistant", "content": completion}, self.later[0]]
        return Talk(self.prompt, messages, self.later[1:], self.turn + 1)


def opening(prompt: Prompt, worded: Sequence[Message]) -> Talk:
    """A conversation at its beginning.

    Args:
        worded: the prompt's messages as they are asked.
    """
    messages = [*worded, *prompt.later]
    last = len(messages) - 1
    first = next((n for n, message in enumerate(messages) if message["role"] == "user"), last)
    later = []
    for message in messages[first + 1 :]:
        if message["role"] not in ("user", "assistant"):
            break  # what follows replies to a message that nobody will have sent
        if message["role"] == "user":
            later.append(message)
    return Talk(prompt, messages[: first + 1], tuple(later), 0)


def taken_up(talk: Talk, rows: Sequence[ResponseRow], where: str) -> Talk | None:
    """A conversation behind the completions that a file holds; None where it has ended.

    Args:
        rows: of this prompt, in the file's order.
        where: the file, for its mistakes.

    Raises:
        DataError: the completions are those of other messages, or out of order.
    """
    at: Talk | None = talk
    for number, row in enumerate(rows):
        # A row without a turn, of a run without conversations, may complete the same first message.
        asked = None if at is None else at.messages[-1]["content"]
        if (row.turn or 0) != number or row.prompt != asked or at is None:
            raise DataError(
                f"{where} holds other completions than those of this conversation",
                found=f"prompt {row.id}, turn {row.turn or 0}",
                fix="Use the prompts and options of the first run, or another file",
            )
        at = at.after(row.response) if row.finished else None
    return at
