"""How far drafts are expected to survive: by calibration, and by what was accepted before (§3.2.1).

Everything but `AcceptanceEstimator.survival` knows finished rounds alone.

Suffixes: R requests, K block slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

from dspark.core import DraftBlock, DraftDecision, Request, RoundRecord, SamplingParams, StepRecord
from dspark.engine.peaks import PeakSurvival
from dspark.engine.survival import Floats, Mean, conditional
from dspark.tables.calibration import CalibrationEntry, CalibrationTable, Key

# Rounds that a request is judged by, and tokens that count for them while it is young.
MEMORY, PRIOR = 8, 2.0
MOST_ENTRIES = 1024  # ways of sampling to remember; clients may think of any number
# Promised tokens of a way of sampling from which on it is well known, and rounds of all its
# requests that a new one is judged by.
TOLD, WAY_MEMORY = 32, 64
SMOOTHING = 0.3  # weight of the newest confidences in `ConfidenceMemory`


class Calibrated:
    """Calibrated survival, each request's by the entry for its way of sampling.

    Args:
        table: the drafter's; None takes its confidences as they are.
        block_size: K.
    """

    def __init__(self, table: CalibrationTable | None, block_size: int) -> None:
        self._table, self._block_size = table, block_size
        self._known: dict[Key, tuple[CalibrationEntry | None, Mean]] = {}

    def mean(self, params: SamplingParams) -> Mean:
        """What drafts do on average; for requests without history."""
        return self._lookup(params)[1]

    def survival(self, params: SamplingParams, confidence_K: Floats) -> Floats:
        """a_k of a draft with these confidences."""
        entry, _ = self._lookup(params)
        return entry.survival_of(confidence_K) if entry else list(accumulate(confidence_K, mul))

    def _lookup(self, params: SamplingParams) -> tuple[CalibrationEntry | None, Mean]:
        key = way(params)
        if key not in self._known:
            entry = self._table.nearest(key) if self._table else None
            mean = Mean(entry.mean_survival) if entry else Mean.unknown(self._block_size)
            make_room(self._known)
            self._known[key] = (entry, mean)
        return self._known[key]


@dataclass(slots=True)
class Evidence:
    """Draft tokens that passed, against what the mean survival had promised; older rounds fade.

    Attributes:
        memory: rounds that count.
        rounds: of the request that were taken in.
    """

    memory: int = MEMORY
    rounds: int = 0
    accepted: float = 0.0
    promised: float = 0.0

    def take(self, accepted: int, promised: float) -> None:
        """Count one round."""
        fade = 1 - 1 / self.memory
        self.accepted = fade * self.accepted + accepted
        self.promised = fade * self.promised + promised

    def take_new(self, records: Sequence[RoundRecord], mean: Mean) -> None:
        """Count those rounds of a request that are new."""
        for record in records[self.rounds :]:
            if record.verified:
                self.take(record.accepted, mean.tokens[record.verified])
        self.rounds = len(records)

    def ratio(self, first: float = 1.0, prior: float = PRIOR) -> float:
        """Accepted over promised; near `first` while few rounds tell.

        Args:
            prior: tokens that count for `first`.
        """
        return (self.accepted + prior * first) / (self.promised + prior)


class AcceptanceEstimator:
    """What is expected of drafts, before they are seen and once their confidences are known.

    Args:
        calibration: the drafter's table.
        block_size: K.
        memory: rounds that a request is judged by.
    """

    def __init__(
        self, calibration: CalibrationTable | None, block_size: int, memory: int = MEMORY
    ) -> None:
        self.block_size, self._memory = block_size, memory
        self._calibrated, self._peaks = (
            Calibrated(calibration, block_size),
            PeakSurvival(block_size),
        )
        self._past: dict[int, Evidence] = {}  # of the requests of the last batch, by id
        self._ways: dict[Key, Evidence] = {}  # of all requests, by way of sampling

    def use(self, calibration: CalibrationTable) -> None:
        """Trust another table from now on."""
        self._calibrated = Calibrated(calibration, self.block_size)

    def mean(self, params: SamplingParams) -> Mean:
        """What drafts do on average; for requests without history."""
        return self._peaks.mean(params) or self._calibrated.mean(params)

    def expected(self, requests: Sequence[Request]) -> list[Floats]:
        """Survival [R, K] that past rounds let expect: the mean one, scaled for each request."""
        past: dict[int, Evidence] = {}
        expected_RK: list[Floats] = []
        for request in requests:
            mean = self.mean(request.params)
            known = past[request.id] = self._past.get(request.id) or Evidence(self._memory)
            known.take_new(request.rounds, mean)
            ratio = known.ratio(*self._first(request.params))
            expected_RK.append([min(a * ratio, 1.0) for a in mean.survival_K])
        self._past = past
        return expected_RK

    def doubt(self) -> None:
        """Let each request's past count half: it is of another part of the text."""
        for known in self._past.values():
            known.accepted, known.promised = known.accepted / 2, known.promised / 2

    def survival(self, decision: DraftDecision, drafts: DraftBlock) -> list[Floats]:
        """a_{r,k} of the drafts of the requests whose length is not fixed.

        Calibrated, or by largest draft probabilities, or as the past lets expect, whatever the
        drafter gives.
        """
        if drafts.confidence_RK is None:
            return [a_K[: decision.slots] for a_K in decision.expected_RK]
        way_to = self._peaks if drafts.peaks else self._calibrated
        confidence_RK, requests = drafts.confidence_RK.tolist(), decision.batch.decode
        return [way_to.survival(requests[r].params, confidence_RK[r]) for r in decision.free]

    def calibrated(self, params: SamplingParams, confidence_K: Floats) -> Floats:
        """a_k of one draft with these confidences."""
        return self._calibrated.survival(params, confidence_K)

    def learn(self, step: StepRecord) -> None:
        """Learn how drafts do in each way of sampling; a grammar bends what its requests accept."""
        for output in step.outputs:
            record, params = output.record, output.request.params
            if record is None or not record.drafted or params.grammar is not None:
                continue
            if record.verified:
                promised = self.mean(params).tokens[record.verified]
                self._way(params).take(record.accepted, promised)
            if step.peaks and self._peaks.take(record, params):
                # The new mean knows what the evidence was against the old one.
                self._past.clear()
                self._ways.clear()

    def _first(self, params: SamplingParams) -> tuple[float, float]:
        """The ratio of a request that has shown nothing yet, and the tokens that count for it.

        What is known of all requests like it counts for more once many rounds tell.
        """
        known = self._ways.get(way(params)) or Evidence()
        return known.ratio(), PRIOR * (1 + min(known.promised / TOLD, 1.0))

    def _way(self, params: SamplingParams) -> Evidence:
        key = way(params)
        if key not in self._ways:
            make_room(self._ways)
            self._ways[key] = Evidence(WAY_MEMORY)
        return self._ways[key]


class ConfidenceMemory:
    """Calibrated confidences as they were two steps ago, smoothed for each request (§5.2).

    What comes of them knows nothing of the present drafts.

    Args:
        acceptance: calibrates, and gives the mean for requests without history.
        smoothing: weight of the newest confidences.
    """

    def __init__(self, acceptance: AcceptanceEstimator, smoothing: float = SMOOTHING) -> None:
        self._acceptance, self._smoothing = acceptance, smoothing
        # Averages of conditional confidences [K] by request id: after each of the last two steps
        # with drafts, the older one first.
        self._past: deque[dict[int, Floats]] = deque([{}, {}], maxlen=2)
        self._average: dict[int, Floats] = {}

    def expected(self, requests: Sequence[Request]) -> list[Floats]:
        """Survival [R, K] by what was known two steps ago."""
        known = [self._known(request, self._past[0]) for request in requests]
        return [list(accumulate(sure_K, mul)) for sure_K in known]

    def observe(self, step: StepRecord) -> None:
        """Remember the confidences of a step's drafts, and forget requests that are gone."""
        if not step.drafted:
            return
        rounds = [(o.request, o.record) for o in step.outputs if o.record is not None]
        present = {request.id for request, _ in rounds}
        self._average = {i: sure_K for i, sure_K in self._average.items() if i in present}
        weighed = [(r, m) for r, m in rounds if m.drafted and not keeps_length(r.params)]
        for request, record in weighed:
            survival_K = self._acceptance.calibrated(request.params, record.confidence)
            old_K, sure_K = self._known(request, self._average), conditional(survival_K)
            drafted = zip(old_K[: len(sure_K)], sure_K, strict=True)
            new_K = [old + self._smoothing * (sure - old) for old, sure in drafted]
            self._average[request.id] = [*new_K, *old_K[len(sure_K) :]]
        if weighed:
            self._past.append(dict(self._average))

    def _known(self, request: Request, averages: dict[int, Floats]) -> Floats:
        """Conditional confidences [K] as remembered, or as they are on average."""
        return averages.get(request.id) or self._acceptance.mean(request.params).conditional_K


def keeps_length(params: SamplingParams) -> bool:
    """Its verify length decides which random number makes a token, and its text must reproduce."""
    return params.seed is not None and params.temperature > 0


def way(params: SamplingParams) -> Key:
    """What calibration tells requests apart by."""
    return (params.temperature, params.top_p, params.top_k)


def make_room(remembered: dict[Key, Any]) -> None:
    """Forget all ways of sampling when there are too many of them."""
    if len(remembered) >= MOST_ENTRIES:
        remembered.clear()
