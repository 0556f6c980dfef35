"""Policies that weigh survival against the machine's measured cost (DSpark §3.2.2, §5.2).

Both maximise expected throughput Θ = τ / (t_draft + t_verify) over the whole batch. Survival is
calibrated where the drafter's table knows the request's way of sampling.

Suffixes: R requests, K block slots, B batch tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark.core import Batch, DraftBlock, Request, RoundRecord, SamplingParams
from dspark.engine.policies import Policy
from dspark.maths import admission
from dspark.tables.calibration import CalibrationEntry, CalibrationTable, Key
from dspark.tables.cost import CostTable, envelope

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Acceptance that stands for a drafter nobody calibrated, where a request has no history yet.
UNKNOWN_ACCEPTANCE = 0.5
MOST_TOKENS = 4096  # of a batch; round times are laid out up to here
# Rounds that a request is judged by, and tokens that stand for them while it is young.
MEMORY, PRIOR = 8, 2.0
# Steps from probe to probe. All requests are probed in the same step, which costs less than each
# at a time of its own: drafting for many takes little longer than for a few.
PROBE_EVERY = 64
# Weight of the newest confidences in the moving average that capacity is computed from.
SMOOTHING = 0.3
MOST_ENTRIES = 1024  # ways of sampling to remember; clients may think of any number


@dataclass(frozen=True, slots=True)
class PolicyTables:
    """What an adaptive policy knows of machine and drafter.

    Attributes:
        cost: measured on this machine with these models.
        calibration: the drafter's; None takes its confidences as they are.
    """

    cost: CostTable
    calibration: CalibrationTable | None = None


class Adaptive(Policy):
    """What the adaptive policies share: survival, round times, and requests with a seed."""

    needs_confidence = True

    def __init__(self, tables: PolicyTables, block_size: int) -> None:
        self.tables, self.draft_len = tables, block_size
        self.verify_s_B = tables.cost.verify_s(MOST_TOKENS)
        self._draft_s: list[float] = []
        self._entries: dict[Key, CalibrationEntry | None] = {}
        self._first = tables.calibration  # what fixed lengths hang on, whatever comes later
        self._steady: dict[Key, int] = {}
        self._means: dict[Key, Floats] = {}
        self._evidence: dict[int, _Evidence] = {}  # of the requests of the last batch, by id
        self._turns = 0

    def use_calibration(self, table: CalibrationTable) -> None:
        """Trust another table from the next step on; call it between steps.

        Requests that keep their length keep the one of the first table: their texts reproduce.
        """
        self.tables = replace(self.tables, calibration=table)
        self._entries.clear()
        self._means.clear()

    def wants(self, batch: Batch) -> Sequence[bool]:
        """Drafts for the requests whose past rounds say that it pays, and now and then a probe.

        Nothing of the present round is known here, so it cannot bend the distribution. A request
        that keeps its length is always drafted.
        """
        requests = batch.decode
        self._turns += 1
        probe = self._turns % PROBE_EVERY == 0
        expected_RK = self._expected(requests)
        verify_s_B = self.verify_s_B[batch.prefill_rows + len(requests) :]
        draft_s_R = self._draft_times(len(requests))
        wanted_R = admission.worth_drafting(expected_RK, draft_s_R, verify_s_B)
        return [
            bool(pays) or probe or _keeps_length(request.params)
            for request, pays in zip(requests, wanted_R, strict=True)
        ]

    def _expected(self, requests: Sequence[Request]) -> Floats:
        """Survival [R, K] as each request's past rounds have it: the mean one, scaled."""
        means = [self.mean_survival(request.params) for request in requests]
        evidence = {}
        for request, mean_K in zip(requests, means, strict=True):
            known = self._evidence.get(request.id) or _Evidence()
            known.take(request.rounds, mean_K)
            evidence[request.id] = known
        self._evidence = evidence
        scale_R = np.array([known.ratio for known in evidence.values()])
        return np.minimum(np.array(means) * scale_R[:, None], 1.0)

    def _draft_times(self, requests: int) -> Floats:
        """Seconds of drafting for 0, 1, … requests."""
        while len(self._draft_s) <= requests:
            self._draft_s.append(self.tables.cost.draft_s(len(self._draft_s)))
        return np.array(self._draft_s[: requests + 1])

    def plan(self, batch: Batch, drafts: DraftBlock) -> Sequence[int]:
        """Lengths that maximise Θ for the requests without a seed of their own.

        A request with one keeps a fixed length: above temperature 0 the verify length decides
        which random number makes a token, and its text must reproduce (algorithms §6).
        """
        assert drafts.confidence_RK is not None
        frame = self._frame(batch)
        if len(frame.free):
            chosen = [batch.decode[r] for r in frame.free]
            confidence_RK = np.array(drafts.confidence_RK.tolist())[frame.free]
            survival_RK = self._survival(chosen, confidence_RK)
            frame.lengths_R[frame.free] = self.admit(chosen, survival_RK, frame)
        return [int(length) for length in frame.lengths_R]

    def _frame(self, batch: Batch) -> Frame:
        """What stands before the present drafts are looked at."""
        requests, committed = batch.decode, float(len(batch.plain) + len(batch.decode))
        lengths_R = np.zeros(len(requests), dtype=np.int64)
        free = []
        for r, request in enumerate(requests):
            if _keeps_length(request.params):
                lengths_R[r] = self.steady_length(request.params)
                committed += float(self.mean_survival(request.params)[: lengths_R[r]].sum())
            else:
                free.append(r)
        rows = batch.other_rows + len(requests) + int(lengths_R.sum())
        draft_s = float(self._draft_times(len(requests))[-1])
        return Frame(free, lengths_R, draft_s + self.verify_s_B[rows:], committed)

    @abstractmethod
    def admit(self, requests: Sequence[Request], survival_RK: Floats, frame: Frame) -> Ints:
        """Verify lengths of the requests that may have any.

        Args:
            survival_RK: calibrated a_{r,k} of their drafts.
        """

    def steady_length(self, params: SamplingParams) -> int:
        """The best fixed length for one request alone, from the first tables and nothing else."""
        key = _key(params)
        if key not in self._steady:
            survival_K = self._mean_survival(nearest_entry(self._first, key))
            tokens_K = 1 + np.concatenate([[0.0], np.cumsum(survival_K)])
            seconds_K = self.tables.cost.draft_s(1) + self.verify_s_B[1 : 2 + self.draft_len]
            _make_room(self._steady)
            self._steady[key] = int(np.argmax(tokens_K / seconds_K))
        return self._steady[key]

    def mean_survival(self, params: SamplingParams) -> Floats:
        """What survival is on average, [K]; for requests without history."""
        key = _key(params)
        if key not in self._means:
            _make_room(self._means)
            self._means[key] = self._mean_survival(self._entry(params))
        return self._means[key]

    def _mean_survival(self, entry: CalibrationEntry | None) -> Floats:
        if entry is None:
            return np.asarray(UNKNOWN_ACCEPTANCE ** np.arange(1.0, self.draft_len + 1))
        return np.array(entry.mean_survival)

    def _survival(self, requests: Sequence[Request], confidence_RK: Floats) -> Floats:
        """Calibrated survival of the drafts, each by the entry for its way of sampling."""
        places: dict[Key, list[int]] = {}
        for r, request in enumerate(requests):
            places.setdefault(_key(request.params), []).append(r)
        survival_RK = np.empty_like(confidence_RK)
        for rows in places.values():
            entry, sure_RK = self._entry(requests[rows[0]].params), confidence_RK[rows]
            survival_RK[rows] = entry.survival(sure_RK) if entry else np.cumprod(sure_RK, 1)
        return survival_RK

    def _entry(self, params: SamplingParams) -> CalibrationEntry | None:
        key = _key(params)
        if key not in self._entries:
            _make_room(self._entries)
            self._entries[key] = nearest_entry(self.tables.calibration, key)
        return self._entries[key]


@dataclass(frozen=True, slots=True)
class Frame:
    """What a round costs and gives before any free request has a draft verified.

    Attributes:
        free: places in the batch of the requests without a fixed length.
        lengths_R: verify lengths of the others; 0 for the free ones.
        seconds_B: time of the whole round with 0, 1, … more rows.
        committed: tokens expected from the batch.
    """

    free: list[int]
    lengths_R: Ints
    seconds_B: Floats
    committed: float


@dataclass(slots=True)
class _Evidence:
    """How many draft tokens of a request passed, against what the mean survival had promised."""

    rounds: int = 0
    accepted: float = 0.0
    promised: float = 0.0

    def take(self, records: Sequence[RoundRecord], mean_K: Floats) -> None:
        """Count the rounds that are new; older ones fade."""
        for record in records[self.rounds :]:
            if record.verified:
                fade = 1 - 1 / MEMORY
                self.accepted = fade * self.accepted + record.accepted
                self.promised = fade * self.promised + float(mean_K[: record.verified].sum())
        self.rounds = len(records)

    @property
    def ratio(self) -> float:
        return (self.accepted + PRIOR) / (self.promised + PRIOR)


class Causal(Adaptive):
    """Algorithm 1 on the cost's convex envelope: stops at the first token that does not pay."""

    name = "causal"

    def __init__(self, tables: PolicyTables, block_size: int) -> None:
        super().__init__(tables, block_size)
        self.verify_s_B = envelope(self.verify_s_B)

    def admit(self, requests: Sequence[Request], survival_RK: Floats, frame: Frame) -> Ints:
        return admission.causal(survival_RK, frame.seconds_B, frame.committed)


class Pipelined(Adaptive):
    """Capacity from confidences two steps old, then the tokens that now look best (§5.2).

    The capacity knows nothing of the drafts it limits, so it may search the whole staircase, and
    it is known before they are made, so none is made that it has no room for.

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
        self._capacity = self._capacity_for([batch.decode[r] for r in frame.free], frame)
        present = {request.id for request in (*batch.decode, *batch.plain)}
        self._average = {i: sure_K for i, sure_K in self._average.items() if i in present}
        return max(min(self._capacity, self.draft_len), int(frame.lengths_R.max()), 1)

    def _capacity_for(self, requests: Sequence[Request], frame: Frame) -> int:
        if not requests:
            return 0
        old = self._past[0]
        sure_RK = self._averages(requests, old)
        return admission.capacity(np.cumprod(sure_RK, 1), frame.seconds_B, frame.committed)

    def admit(self, requests: Sequence[Request], survival_RK: Floats, frame: Frame) -> Ints:
        count = self._capacity
        if count is None:  # asked without `steps`
            count = self._capacity_for(requests, frame)
        self._capacity = None
        average_RK = self._averages(requests, self._average)
        known_RK = average_RK[:, : survival_RK.shape[1]]  # slots that were not drafted stay
        known_RK += self.smoothing * (_conditional(survival_RK) - known_RK)
        self._average |= {r.id: sure_K for r, sure_K in zip(requests, average_RK, strict=True)}
        self._past.append(dict(self._average))
        return admission.top(survival_RK, count)

    def _averages(self, requests: Sequence[Request], known: dict[int, Floats]) -> Floats:
        """Conditional confidences [R, K] as remembered, or as they are on average."""
        mean_RK = _conditional(np.array([self.mean_survival(r.params) for r in requests]))
        for r, request in enumerate(requests):
            if request.id in known:
                mean_RK[r] = known[request.id]
        return mean_RK


def nearest_entry(table: CalibrationTable | None, key: Key) -> CalibrationEntry | None:
    """A table's entry for a way of sampling, or the nearest in temperature; None without any."""
    entries = () if table is None else table.entries
    return min(entries, key=lambda e: (e.key != key, abs(e.temperature - key[0])), default=None)


ADAPTIVE: dict[str, type[Adaptive]] = {cls.name: cls for cls in (Causal, Pipelined)}


def _conditional(survival_RK: Floats) -> Floats:
    """c_k of each slot, given that the slots before it survive."""
    before_RK = np.concatenate([np.ones_like(survival_RK[:, :1]), survival_RK[:, :-1]], 1)
    return survival_RK / np.maximum(before_RK, 1e-12)


def _make_room(remembered: dict[Key, Any]) -> None:
    if len(remembered) >= MOST_ENTRIES:
        remembered.clear()


def _key(params: SamplingParams) -> Key:
    return (params.temperature, params.top_p, params.top_k)


def _keeps_length(params: SamplingParams) -> bool:
    return params.seed is not None and params.temperature > 0
