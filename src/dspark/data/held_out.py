"""Completions to measure drafters on: those that their training held out, or all of some files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dspark.data.responses import Response, check_vocabulary, load_responses, split_held_out
from dspark.errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    """How training splits completions; see `config.DataSection`."""

    held_out_share: float
    max_length: int
    seed: int


def completions_to_measure(
    sources: Sequence[str | Path], split: Split | None, limit: int | None, vocab_size: int
) -> list[Response]:
    """Completions of two tokens or more, domains in turn, in the files' order.

    Args:
        sources: files of completions (`data.responses`).
        split: keep what it holds out, cut as training cuts it; None keeps all, whole.
        limit: keep so many at most.

    Raises:
        DataError: nothing is left, a file is damaged, or tokens do not fit the vocabulary.
    """
    found = load_responses(sources, None if split is None else split.max_length)
    found = [completion for completion in found if len(completion.response_ids) >= 2]
    kept = found
    if split is not None:
        kept = split_held_out(found, split.held_out_share, split.seed)[1]
    if not kept:
        raise DataError(
            "No completion is left to measure on",
            found=f"{len(found)} completions, none of them held out",
            fix="Give the files trained on, or with --whole completions that no training saw",
        )
    check_vocabulary(kept, vocab_size)
    turns: dict[str, int] = {}
    places = []
    for completion in kept:
        turns[completion.domain] = turns.get(completion.domain, -1) + 1
        places.append((turns[completion.domain], completion))
    ordered = [completion for _, completion in sorted(places, key=lambda pair: pair[0])]
    return ordered[:limit]
