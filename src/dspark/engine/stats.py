"""What speculation did, counted from round records (docs/algorithms.md, "What is counted")."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dspark.core import Request, RoundRecord


def accepted_length(requests: Iterable[Request]) -> float:
    """τ: tokens committed a round, bonus included; NaN without rounds.

    The token from prefill belongs to no round, and a round cut by a stop or by the length limit
    counts what it emitted.
    """
    rounds = list(_rounds(requests))
    return _ratio(sum(record.committed for record in rounds), len(rounds))


def accept_by_position(requests: Iterable[Request]) -> list[float]:
    """Conditional acceptance of slots 1, 2, …: P(accepted | verified, all before accepted).

    Rounds that end in an accepted stop token, or at the length limit, say nothing about the
    slots behind. A slot that was never reached is NaN.
    """
    counts = accept_counts(requests)
    return [_ratio(accepted, reached) for accepted, reached in counts]


def accept_counts(requests: Iterable[Request]) -> list[tuple[int, int]]:
    """(accepted, reached) rounds of each slot, the two sides of `accept_by_position`."""
    rounds = list(_rounds(requests))
    size = max((record.verified for record in rounds), default=0)
    accepted, rejected = [0] * size, [0] * size
    for record in rounds:
        for k in range(record.accepted):
            accepted[k] += 1
        if record.rejected:
            rejected[record.accepted] += 1
    return [(yes, yes + no) for yes, no in zip(accepted, rejected, strict=True)]


def verified_tokens(requests: Iterable[Request]) -> int:
    """Draft tokens sent to the target."""
    return sum(record.verified for record in _rounds(requests))


def wasted_tokens(requests: Iterable[Request]) -> int:
    """Draft tokens sent to the target that do not stand in the text."""
    return sum(record.verified - record.accepted for record in _rounds(requests))


def _rounds(requests: Iterable[Request]) -> Iterator[RoundRecord]:
    for request in requests:
        yield from request.rounds


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
