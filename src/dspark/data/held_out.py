"""Answers to judge drafters by: those that their training held out, or all of some files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dspark.data.responses import Response, check_vocabulary, load_responses, split_held_out
from dspark.errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    """How training splits answers; see `config.DataSection`."""

    held_out_share: float
    max_length: int
    seed: int


def judging_answers(
    sources: Sequence[str | Path], split: Split | None, limit: int | None, vocab_size: int
) -> list[Response]:
    """Answers of two tokens or more, domains in turn, in the files' order.

    Args:
        sources: files of answers (`data.responses`).
        split: keep what it holds out, cut as training cuts it; None keeps all, whole.
        limit: keep so many at most.

    Raises:
        DataError: nothing is left, a file is damaged, or tokens do not fit the vocabulary.
    """
    found = load_responses(sources, None if split is None else split.max_length)
    found = [answer for answer in found if len(answer.response_ids) >= 2]
    kept = found
    if split is not None:
        kept = split_held_out(found, split.held_out_share, split.seed)[1]
    if not kept:
        raise DataError(
            "No answer is left to judge by",
            found=f"{len(found)} answers, none of them held out",
            fix="Give the files trained on, or with --whole answers that no training saw",
        )
    check_vocabulary(kept, vocab_size)
    turns: dict[str, int] = {}
    places = []
    for answer in kept:
        turns[answer.domain] = turns.get(answer.domain, -1) + 1
        places.append((turns[answer.domain], answer))
    ordered = [answer for _, answer in sorted(places, key=lambda pair: pair[0])]
    return ordered[:limit]
