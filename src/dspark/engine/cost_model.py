"""What a round takes on this machine: the measured table, and what the engine's steps say of it.

What a step computes here is plain numbers: the forwards around it leave no cache warm, and then an
array call costs more than all the numbers of a single user.

Suffix: B batch tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dspark.core import StepRecord
from dspark.maths.admission import DraftTimes
from dspark.tables.cost import CostTable, envelope

MOST_TOKENS = 4096  # of a batch; round times are laid out up to here
PAIRS = 9  # that the correction comes from
FEWEST = 3  # pairs that are believed; ones that lack count as the table being right
# Rows of a drafted request that may have waited before a step that teaches: the first draft after a
# plain run takes in the rows of that run, which were cheap until then.
MOST_LATE = 2


class CostModel:
    """Round seconds by the cost table, for any number of requests, slots and batch tokens.

    Args:
        table: measured on this machine.
        block_size: K, slots of a whole block.
        convex: lay verify times out on their lower convex envelope, where Θ has one peak.

    Attributes:
        correction: of rounds with drafts, learned from steps that `learn` was shown.
    """

    def __init__(self, table: CostTable, block_size: int, convex: bool) -> None:
        self.table, self.block_size, self._convex = table, block_size, convex
        self.correction = StepTimes(self.predicted_s)
        self._verify_s: dict[int, list[float]] = {}  # by requests
        self._draft_s: list[DraftTimes] = []  # by requests

    def draft_times(self, requests: int) -> list[DraftTimes]:
        """Of 0, 1, … requests, up to so many or more: slots and seconds of drafting them.

        Where the table knows whole blocks alone, they are what any draft costs.
        """
        choices = range(1, self.block_size + 1) if self.table.short else [self.block_size]
        while len(self._draft_s) <= requests:
            count = len(self._draft_s)
            self._draft_s.append([(slots, self.table.draft_s(count, slots)) for slots in choices])
        return self._draft_s

    def draft_s(self, requests: int, slots: int) -> float:
        """Seconds of drafting so many slots for each of so many requests."""
        times = self.draft_times(requests)[requests]
        return times[min(slots, len(times)) - 1][1]

    def verify_s(self, rows: int, prompts: int, drafted: int, requests: int) -> list[float]:
        """Seconds of the target's forward with 0, 1, … draft tokens, less what the prompts take.

        Prompts have to be run whatever is drafted. In the denominator of Θ their time would make
        drafts look cheap that cost more a token than a step without prompts and drafts.

        Args:
            rows: in the batch without any draft tokens.
            prompts: rows of prompts among these.
            drafted: requests that may have draft tokens.
            requests: that decode, drafted or not.
        """
        seconds_B = self._laid_out(requests)
        rows = min(rows, len(seconds_B) - 1)
        debt = seconds_B[rows] - seconds_B[max(rows - prompts, 0)]
        return [s - debt for s in seconds_B[rows : rows + drafted * self.block_size + 1]]

    def predicted_s(self, step: StepRecord) -> float:
        """Seconds of a step by the cost table alone."""
        verify_s = self._laid_out(step.decoding)[min(step.rows, MOST_TOKENS)]
        return verify_s + (self.draft_s(step.drafted, step.slots) if step.drafted else 0.0)

    def _laid_out(self, requests: int) -> list[float]:
        """Seconds of the target's forward with 0, 1, … rows of so many requests."""
        requests = min(requests, self.table.most_requests)
        if requests not in self._verify_s:
            seconds_B = self.table.verify_s(MOST_TOKENS, requests)
            self._verify_s[requests] = (envelope(seconds_B) if self._convex else seconds_B).tolist()
        return self._verify_s[requests]


class StepTimes:
    """The correction ρ of rounds with drafts, for numbers of requests of one bit length each.

    Each pair of steps gives (measured / predicted with drafts) over (measured / predicted without).
    The two steps are next to each other in time, so that a neighbour on the machine, who slows
    both, does not count. ρ is the quartile of the last pairs that lies nearer to 1, and 1 where it
    lies between the two: on a machine full of neighbours pairs differ by half, and what they do not
    agree on is no reason to leave the table.

    Args:
        predict: seconds of a step by the cost table.
    """

    def __init__(self, predict: Callable[[StepRecord], float]) -> None:
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
