"""What the last minutes looked like, one point a second, for plots."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from dspark.core import Request, StepOutput, StepStats
from dspark.engine.stats import accept_counts

SECONDS = 300
RECENT_S = 10  # what "now" means for rates and means
ACCEPT_S = 60  # acceptance by position needs more rounds than a second has


@dataclass(slots=True)
class Second:
    """Sums over the steps of one second; counts of requests are those of its last step."""

    t: int
    tokens: int = 0
    steps: int = 0
    batch_tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    running: int = 0
    waiting: int = 0
    slots: list[tuple[int, int]] = field(default_factory=list)  # (accepted, reached) of each


class History:
    """A ring of seconds. Safe to feed and read from different threads.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._start = int(clock())
        self._seconds: deque[Second] = deque(maxlen=SECONDS + 1)  # the present one is not shown

    def step(
        self, outputs: Sequence[StepOutput], stats: StepStats, running: int, waiting: int
    ) -> None:
        """Add one engine step.

        Args:
            stats: of this step alone.
            running, waiting: requests with and without a slot after it.
        """
        records = [output.record for output in outputs if output.record is not None]
        slots = accept_counts([Request(0, [], rounds=records)])
        now = int(self._clock())
        with self._lock:
            if not self._seconds or self._seconds[-1].t < now:
                self._seconds.append(Second(now))
            second = self._seconds[-1]
            second.tokens += sum([len(output.token_ids) for output in outputs])
            second.steps += 1
            second.batch_tokens += stats.batch_tokens
            second.rounds += len(records)
            for record in records:
                second.drafted += record.drafted
                second.verified += record.verified
                second.accepted += record.accepted
            second.running, second.waiting = running, waiting
            pairs = zip_longest(second.slots, slots, fillvalue=(0, 0))
            second.slots = [(a + c, b + d) for (a, b), (c, d) in pairs]

    def recent(self) -> tuple[float, float]:
        """Tokens a second and mean verify length of the last seconds; NaN without a round."""
        now = int(self._clock())
        with self._lock:
            chosen = [second for second in self._seconds if now - RECENT_S <= second.t < now]
        tokens = sum(second.tokens for second in chosen)
        rounds, verified = sum(s.rounds for s in chosen), sum(s.verified for s in chosen)
        return tokens / RECENT_S, verified / rounds if rounds else float("nan")

    def points(self) -> list[dict[str, Any]]:
        """The last seconds, oldest first, without the present one; idle ones are zero."""
        now = int(self._clock())
        with self._lock:
            known = {second.t: second for second in self._seconds}
        first = max(now - SECONDS, self._start)
        seconds = [known.get(t, Second(t)) for t in range(first, now)]
        return [_point(s, slots) for s, slots in zip(seconds, _rolling(seconds), strict=True)]


def _rolling(seconds: Sequence[Second]) -> list[list[tuple[int, int]]]:
    """By slot, (accepted, reached) over the minute up to each second."""
    most = max((len(second.slots) for second in seconds), default=0)
    counts = np.zeros((len(seconds) + 1, most, 2), dtype=np.int64)
    for i, second in enumerate(seconds):
        if second.slots:
            counts[i + 1, : len(second.slots)] = second.slots
    sums = counts.cumsum(axis=0)
    before = np.maximum(np.arange(1, len(seconds) + 1) - ACCEPT_S, 0)
    found: list[list[tuple[int, int]]] = (sums[1:] - sums[before]).tolist()
    return found


def _point(second: Second, slots: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return {
        "t": second.t,
        "tokens_per_s": second.tokens,
        "running": second.running,
        "waiting": second.waiting,
        "mean_verify_len": second.verified / second.rounds if second.rounds else None,
        "batch_tokens": second.batch_tokens / second.steps if second.steps else None,
        "accept_by_position": [yes / reached if reached else None for yes, reached in slots],
        "drafted": second.drafted,
        "verified": second.verified,
        "accepted": second.accepted,
    }
