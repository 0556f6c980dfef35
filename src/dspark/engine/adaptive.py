"""Policies that weigh survival against the machine's measured cost (DSpark §3.2.2, §5.2).

Both maximise expected throughput Θ = τ / (t_draft + t_verify) over the whole batch. Survival is
calibrated where the drafter's table knows the request's way of sampling.

Suffixes: R requests, K block slots, B batch tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark.core import Batch, DraftBlock, Request, SamplingParams
from dspark.engine.policies import Policy
from dspark.maths import admission
from dspark.tables.calibration import CalibrationEntry, CalibrationTable
from dspark.tables.cost import CostTable, envelope

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Acceptance that stands for a drafter nobody calibrated, where a request has no history yet.
UNKNOWN_ACCEPTANCE = 0.5
MOST_TOKENS = 4096  # of a batch; round times are laid out up to here
# Drafted rounds that a request is judged by, and rounds after which one that is not drafted gets
# another chance.
MEMORY, PROBE_EVERY = 8, 16


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
        self._entries: dict[tuple[float, float, int], CalibrationEntry | None] = {}

    def wants(self, batch: Batch) -> Sequence[bool]:
        """Drafts for the requests whose past rounds say that it pays, and now and then a probe.

        Nothing of the present round is known here, so it cannot bend the distribution. A request
        that keeps its length is always drafted.
        """
        requests, cost = batch.decode, self.tables.cost
        pasts = [self._past_of(request) for request in requests]
        draft_s_R = [cost.draft_s(n) for n in range(len(requests) + 1)]
        verify_s_B = self.verify_s_B[batch.prefill_rows + len(requests) :]
        accepted_R, verified_R = zip(*pasts, strict=True)
        wanted = admission.worth_drafting(accepted_R, verified_R, draft_s_R, verify_s_B)
        return [
            bool(pays) or _keeps_length(request.params) or _probe_is_due(request)
            for request, pays in zip(requests, wanted, strict=True)
        ]

    def _past_of(self, request: Request) -> tuple[float, float]:
        """Mean accepted and verified draft tokens of the last drafted rounds."""
        recent = request.rounds[-MEMORY * PROBE_EVERY :]
        drafted = [record for record in recent if record.drafted][-MEMORY:]
        if len(drafted) < MEMORY // 2:  # too young to judge
            length = max(self.steady_length(request.params), 1)
            return float(self.mean_survival(request.params)[:length].sum()), float(length)
        accepted = sum(record.accepted for record in drafted) / len(drafted)
        return accepted, max(sum(record.verified for record in drafted) / len(drafted), 1.0)

    def plan(self, batch: Batch, drafts: DraftBlock) -> Sequence[int]:
        """Lengths that maximise Θ for the requests without a seed of their own.

        A request with one keeps a fixed length: above temperature 0 the verify length decides
        which random number makes a token, and its text must reproduce (algorithms §6).
        """
        assert drafts.confidence_RK is not None
        requests = batch.decode
        free = [r for r, request in enumerate(requests) if not _keeps_length(request.params)]
        lengths_R = np.array([self.steady_length(request.params) for request in requests])
        lengths_R[free] = 0
        if free:
            survival_RK = self._survival(requests, drafts.confidence_RK.tolist())
            within = np.arange(self.draft_len) < lengths_R[:, None]
            committed = len(batch.plain) + len(requests) + float(survival_RK[within].sum())
            rows = batch.other_rows + len(requests) + int(lengths_R.sum())
            draft_s = self.tables.cost.draft_s(len(requests))
            chosen = [requests[r] for r in free]
            lengths_R[free] = self.admit(chosen, survival_RK[free], committed, rows, draft_s)
        return [int(length) for length in lengths_R]

    @abstractmethod
    def admit(
        self,
        requests: Sequence[Request],
        survival_RK: Floats,
        committed: float,
        rows: int,
        draft_s: float,
    ) -> Ints:
        """Verify lengths of requests that may have any.

        Args:
            survival_RK: calibrated a_{r,k} of their drafts.
            committed: tokens expected from the batch if none of them has a draft verified.
            rows: batch tokens in that case.
            draft_s: seconds that drafting took.
        """

    def steady_length(self, params: SamplingParams) -> int:
        """The best fixed length for one request alone, from the tables and nothing else."""
        tokens_K = 1 + np.concatenate([[0.0], np.cumsum(self.mean_survival(params))])
        seconds_K = self.tables.cost.draft_s(1) + self.verify_s_B[1 : 2 + self.draft_len]
        return int(np.argmax(tokens_K / seconds_K))

    def mean_survival(self, params: SamplingParams) -> Floats:
        """What survival is on average, [K]; for requests without history."""
        entry = self._entry(params)
        if entry is None:
            return np.asarray(UNKNOWN_ACCEPTANCE ** np.arange(1.0, self.draft_len + 1))
        return np.array(entry.mean_survival)

    def _survival(self, requests: Sequence[Request], confidence: list[list[float]]) -> Floats:
        rows = []
        for request, sure_K in zip(requests, confidence, strict=True):
            entry = self._entry(request.params)
            rows.append(np.cumprod(sure_K) if entry is None else entry.survival(sure_K))
        return np.array(rows)

    def _entry(self, params: SamplingParams) -> CalibrationEntry | None:
        """The table's entry for these parameters, or the nearest in temperature."""
        key = (params.temperature, params.top_p, params.top_k)
        if key not in self._entries:
            table = self.tables.calibration
            entries = () if table is None else table.entries
            distance = lambda e: (e.key != key, abs(e.temperature - params.temperature))  # noqa: E731
            self._entries[key] = min(entries, key=distance, default=None)
        return self._entries[key]


class Causal(Adaptive):
    """Algorithm 1 on the cost's convex envelope: stops at the first token that does not pay."""

    name = "causal"

    def __init__(self, tables: PolicyTables, block_size: int) -> None:
        super().__init__(tables, block_size)
        self.verify_s_B = envelope(self.verify_s_B)

    def admit(
        self,
        requests: Sequence[Request],
        survival_RK: Floats,
        committed: float,
        rows: int,
        draft_s: float,
    ) -> Ints:
        return admission.causal(survival_RK, draft_s + self.verify_s_B[rows:], committed)


class Pipelined(Adaptive):
    """Capacity from confidences two steps old, then the tokens that now look best (§5.2).

    The capacity knows nothing of the drafts it limits, so it may search the whole staircase.
    """

    name = "pipelined"

    def __init__(self, tables: PolicyTables, block_size: int) -> None:
        super().__init__(tables, block_size)
        self._past: deque[dict[int, Floats]] = deque([{}, {}], maxlen=2)

    def admit(
        self,
        requests: Sequence[Request],
        survival_RK: Floats,
        committed: float,
        rows: int,
        draft_s: float,
    ) -> Ints:
        old = self._past[0]
        expected_RK = np.array([old.get(r.id, self.mean_survival(r.params)) for r in requests])
        count = admission.capacity(expected_RK, draft_s + self.verify_s_B[rows:], committed)
        pairs = zip(requests, survival_RK, strict=True)
        self._past.append({request.id: survival_K for request, survival_K in pairs})
        return admission.top(survival_RK, count)


ADAPTIVE: dict[str, type[Adaptive]] = {cls.name: cls for cls in (Causal, Pipelined)}


def _probe_is_due(request: Request) -> bool:
    """The request has gone undrafted long enough."""
    recent = request.rounds[-PROBE_EVERY:]
    return len(recent) == PROBE_EVERY and not any(record.drafted for record in recent)


def _keeps_length(params: SamplingParams) -> bool:
    return params.seed is not None and params.temperature > 0
