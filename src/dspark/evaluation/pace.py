"""Work of several parts within a time: how long each may take, how far it is, what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from dspark.core import FinishReason, Request
from dspark.engine.engine import Engine

OnProgress = Callable[[str, float, int], None]


class Pace:
    """The clock of a run in parts.

    Args:
        seconds: for all parts together; None takes as long as they need.
        stopped: says, between steps, that somebody wants an answer now.
        on_progress: called after every step with the part's name, how much of it is done, and
            how much there is.

    Attributes:
        stopped_early: some work was left out.
    """

    def __init__(
        self,
        seconds: float | None = None,
        stopped: Callable[[], bool] = lambda: False,
        on_progress: OnProgress = lambda part, done, planned: None,
    ) -> None:
        self._stopped, self._on_progress = stopped, on_progress
        self._start = self._part_start = perf_counter()
        self._end = self._part_end = None if seconds is None else self._start + seconds
        self._part, self._planned = "", 0
        self.stopped_early = False

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return perf_counter() - self._start

    @property
    def over(self) -> bool:
        """Whether the present part must end."""
        return self._is_past(self._part_end)

    def begin(self, part: str, planned: int, share: float) -> None:
        """The next part.

        Args:
            planned: how much there is to do.
            share: of the time that is left for all.
        """
        self._part, self._planned, self._part_start = part, planned, perf_counter()
        if self._end is not None:
            self._part_end = self._part_start + share * max(self._end - self._part_start, 0.0)
        self._on_progress(part, 0.0, planned)

    def within(self, share: float) -> float | None:
        """The moment when so much of the part's time that is left is over; None without a time."""
        if self._part_end is None:
            return None
        now = perf_counter()
        return now + share * max(self._part_end - now, 0.0)

    def run(
        self,
        engine: Engine,
        requests: Sequence[Request],
        end: float | None = None,
        done: float = 0.0,
        weight: float = 1.0,
    ) -> None:
        """Answer requests, or cut them short where the time is over; what they said stays.

        Args:
            requests: of the engine, not yet in line.
            end: a moment of `within`; None is the part's own end.
            done: how much of the part is done before.
            weight: how much each request is of it.
        """
        end = self._part_end if end is None else end
        try:
            for request in requests:
                engine.submit_request(request)
            while any(request.finish is None for request in requests):
                if self._is_past(end):
                    self.stopped_early = True
                    break
                engine.step()
                self._on_progress(
                    self._part, done + weight * sum(map(share, requests)), self._planned
                )
        finally:
            for request in requests:
                if request.finish is None or request.slot is not None:
                    engine.cancel(request)

    def estimate(self, done: float, more: float) -> str:
        """How long more work of the present part takes, by what it took so far."""
        if not done:
            return "at a pace that is not known yet"
        seconds = (perf_counter() - self._part_start) * more / done
        return f"about {seconds:,.0f} s" if seconds < 600 else f"about {seconds / 60:,.0f} min"

    def _is_past(self, end: float | None) -> bool:
        return self._stopped() or (end is not None and perf_counter() >= end)


def share(request: Request) -> float:
    """How much of the longest answer that it may give a request has said; 1 at its end."""
    if request.finish not in (None, FinishReason.CANCELLED):
        return 1.0
    return len(request.output_ids) / max(request.params.max_new_tokens, 1)
