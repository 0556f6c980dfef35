"""Conversations of several turns: rows of one conversation joined to one sequence for training.

`dspark regenerate --turns` writes a row for each completion, whose prompt is the whole conversation
so far. Where that prompt goes on, token for token, from the row before, both are one sequence: the
target runs over it once, every completion in it is learned, and what lies between is context.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dspark.data.responses import Response


def joined(before: Response, turn: Response) -> Response | None:
    """The conversation up to ``before`` and the next completion; None if it is not the next one.

    A chat template may write an earlier completion otherwise than it was generated (white space cut
    off, other tokens for the same text): then the two stay apart, as they are served.
    """
    ids = np.concatenate([before.prompt_ids, before.response_ids])
    if len(turn.prompt_ids) <= len(ids) or not np.array_equal(turn.prompt_ids[: len(ids)], ids):
        return None
    between, start = turn.prompt_ids[len(ids) :], len(before.response_ids)
    return replace(
        before,
        response_ids=np.concatenate([before.response_ids, between, turn.response_ids]),
        finished=turn.finished,
        context=(*before.context, (start, start + len(between))),
    )


class Conversations:
    """Joins completions as they are read: those of a conversation come in order, others between.

    Args:
        responses: what was read so far; completions are added to it, or to the last one of theirs.
    """

    def __init__(self, responses: list[Response]) -> None:
        self._responses = responses
        self._last: dict[str, tuple[int, int]] = {}  # by prompt: number of the turn, place

    def add(self, response: Response, turn: int) -> None:
        """Take in the completion of a turn, counted from 0."""
        number, at = self._last.get(response.id, (turn, 0))
        whole = joined(self._responses[at], response) if turn and number == turn - 1 else None
        if whole is None:
            at = len(self._responses)
            self._responses.append(response)
        else:
            self._responses[at] = whole
        self._last[response.id] = turn, at
