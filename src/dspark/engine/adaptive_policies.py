"""The adaptive policies: Algorithm 1, and capacity known before the drafts (DSpark §3.2.2, §5.2).

Suffixes: R requests, K block slots, B batch tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from dspark.core import Batch, Request
from dspark.engine.adaptive import MOST_TOKENS, Adaptive, Floats, Frame, PolicyTables
from dspark.engine.survival import conditional
from dspark.maths import admission
from dspark.tables.cost import CostTable, envelope

# Weight of the newest confidences in the moving average that capacity is computed from.
SMOOTHING = 0.3


class Causal(Adaptive):
    """Algorithm 1 on the cost's convex envelope: stops at the first token that does not pay."""

    name = "causal"

    def __init__(self, tables: PolicyTables, block_size: int) -> None:
        super().__init__(tables, block_size)
        self._slots: tuple[tuple[int, ...], int] = ((), 0)  # drafted last, in which situation

    def _laid_out(self, cost: CostTable, requests: int) -> list[float]:
        return envelope(cost.verify_s(MOST_TOKENS, requests)).tolist()

    def steps(self, batch: Batch) -> int:
        """As many slots as pay by what the past rounds of the batch let expect, and a spare."""
        situation = (self._held_until, len(batch.decode), batch.other_rows, batch.prefill_rows)
        if not self._held_until or self._slots[0] != situation:
            self._slots = situation, self._choose_slots(batch)
        return self._slots[1]

    def _choose_slots(self, batch: Batch) -> int:
        frame = self._frame(batch)
        requests = [batch.decode[r] for r in frame.free]
        expected_RK = [
            self._expected_K.get(request.id) or self._survival.mean(request.params).survival_K
            for request in requests
        ]
        best = admission.best_block(
            expected_RK, self._draft_times(frame), frame.verify_s_B, frame.committed
        )
        return self._with_spare(best, frame)

    def admit(
        self, requests: Sequence[Request], survival_RK: Sequence[Floats], frame: Frame
    ) -> list[int]:
        seconds_B = self._seconds(frame, len(survival_RK[0]))
        return admission.causal(survival_RK, seconds_B, frame.committed)


class Pipelined(Adaptive):
    """Capacity from confidences two steps old, then the tokens that now look best (§5.2).

    The capacity knows nothing of the drafts it limits, so it may search the whole staircase, and
    it is known before they are made, together with the slots to draft: none is made that it has no
    room for.

    Attributes:
        smoothing: weight of the newest confidences in each request's moving average.
    """

    name = "pipelined"

    def __init__(self, tables: PolicyTables, block_size: int) -> None:
        super().__init__(tables, block_size)
        self.smoothing = SMOOTHING
        # Averages of conditional confidences [K] by request id: now, and after each of the last
        # two steps, the older one first.
        self._average: dict[int, Floats] = {}
        self._past: deque[dict[int, Floats]] = deque([{}, {}], maxlen=2)
        self._capacity: int | None = None

    def steps(self, batch: Batch) -> int:
        frame = self._frame(batch)
        best = self._best([batch.decode[r] for r in frame.free], frame)
        self._capacity = best.count
        present = {request.id for request in (*batch.decode, *batch.plain)}
        self._average = {i: sure_K for i, sure_K in self._average.items() if i in present}
        if len(frame.free) < len(batch.decode):
            return self.draft_len
        return max(min(self._with_spare(best, frame), best.count), 1)

    def _best(self, requests: Sequence[Request], frame: Frame) -> admission.Block:
        sure_RK = [self._known(request, self._past[0]) for request in requests]
        survival_RK = [list(accumulate(sure_K, mul)) for sure_K in sure_RK]
        return admission.best_block(
            survival_RK, self._draft_times(frame), frame.verify_s_B, frame.committed
        )

    def admit(
        self, requests: Sequence[Request], survival_RK: Sequence[Floats], frame: Frame
    ) -> list[int]:
        count = self._capacity
        if count is None:  # asked without `steps`
            count = self._best(requests, frame).count
        self._capacity = None
        for request, survival_K in zip(requests, survival_RK, strict=True):
            old_K, sure_K = self._known(request, self._average), conditional(survival_K)
            drafted = zip(old_K[: len(sure_K)], sure_K, strict=True)
            new_K = [old + self.smoothing * (sure - old) for old, sure in drafted]
            self._average[request.id] = [*new_K, *old_K[len(sure_K) :]]
        self._past.append(dict(self._average))
        return admission.top(survival_RK, count)

    def _known(self, request: Request, averages: dict[int, Floats]) -> Floats:
        """Conditional confidences [K] as remembered, or as they are on average."""
        return averages.get(request.id) or self._survival.mean(request.params).conditional_K
