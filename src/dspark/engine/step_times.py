"""What the engine's own steps say of the cost table: rounds with drafts against steps without.

Only the quotient of the two counts. Both are taken from steps next to each other in time, so that
a neighbour on the machine, who slows both, does not count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dspark.core import StepRecord

PAIRS = 9  # that the correction comes from
FEWEST = 3  # pairs that are believed; ones that lack count as the table being right
# Rows of a drafted request that may have waited before a step that teaches: the first draft after a
# plain run takes in the rows of that run, which were cheap until then.
MOST_LATE = 2

Predict = Callable[[StepRecord], float]


class StepTimes:
    """The correction ρ of rounds with drafts, for numbers of requests of one bit length each.

    Each pair gives (measured / predicted with drafts) over (measured / predicted without). ρ is the
    quartile of the last ones that lies nearer to 1, and 1 where it lies between the two: on a
    machine full of neighbours pairs differ by half, and what they do not agree on is no reason to
    leave the table.

    Args:
        predict: seconds of a step by the cost table.
    """

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self._pairs: dict[int, deque[float]] = {}  # by bit length
        self._last: StepRecord | None = None

    def take(self, step: StepRecord) -> None:
        """Look at a step; it makes a pair with the one before where the two can be compared."""
        if step.drafted and step.late > MOST_LATE * step.drafted:
            return  # passed over: its neighbours may be compared with each other
        last, self._last = self._last, step if _tells(step) else None
        if self._last is None or last is None or last.decoding != step.decoding:
            return
        if bool(last.drafted) == bool(step.drafted):
            return
        drafted, plain = (step, last) if step.drafted else (last, step)
        share = lambda one: one.seconds / max(self._predict(one), 1e-9)  # noqa: E731
        pairs = self._pairs.setdefault(step.decoding.bit_length(), deque(maxlen=PAIRS))
        pairs.append(share(drafted) / share(plain))

    def ratio(self, requests: int) -> float:
        """ρ for so many requests; 1 where nothing is known."""
        pairs = self._pairs.get(requests.bit_length(), ())
        ranked = sorted([*pairs, *[1.0] * (FEWEST - len(pairs))])
        quarter = (len(ranked) - 1) // 4
        low, high = ranked[quarter], ranked[-1 - quarter]
        return low if low > 1 else min(high, 1.0)


def _tells(step: StepRecord) -> bool:
    """It decodes, and prompts are no part of its time."""
    return bool(step.decoding) and not step.prompts and step.seconds > 0
