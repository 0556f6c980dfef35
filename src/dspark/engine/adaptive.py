"""What policies share that weigh survival against measured cost (DSpark §3.2.2, §5.2).

They maximise expected throughput Θ = τ / (t_draft + t_verify) over the whole batch. Survival is
calibrated where the drafter's table knows the request's way of sampling. How many slots to draft
is settled before, from past rounds alone, so it cannot bend the distribution.

What a step computes here is plain numbers: the forwards around it leave no cache warm, and then
an array call costs more than all the numbers of a single user.

Suffixes: R requests, K block slots, B batch tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dspark.core import Batch, DraftBlock, Request, SamplingParams
from dspark.engine.policies import Policy
from dspark.engine.survival import MEMORY, PRIOR, Evidence, Survival, make_room, way
from dspark.maths import admission
from dspark.maths.admission import DraftTimes
from dspark.tables.calibration import CalibrationTable, Key
from dspark.tables.cost import CostTable

Floats = Sequence[float]

MOST_TOKENS = 4096  # of a batch; round times are laid out up to here
# Steps from probe to probe. All requests are probed in the same step, which costs less than each
# at a time of its own: drafting for many takes little longer than for a few.
PROBE_EVERY = 64
# Steps that a choice of whom to draft stands for while the same requests run: what is expected of
# them moves slowly, and choosing takes as long as all else a policy does.
HOLD = 4
# Share by which drafts must raise Θ over a step without any. A round with drafts takes longer than
# drafting and verifying: choosing what to verify alone is 2 % of a round of 8 users.
MARGIN = 0.03
# A slot beyond those expected to pay is drafted, as room for a draft that is surer than expected,
# where it adds no more than this share to the round.
SPARE_SHARE = 0.01


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
        self._verify_s: dict[int, list[float]] = {}  # by requests
        self._draft_s: list[DraftTimes] = []  # by requests
        self._survival = Survival(tables.calibration, block_size)
        self._first = self._survival  # what fixed lengths hang on, whatever comes later
        self._steady: dict[Key, int] = {}
        # Of the requests of the last batch, by id: their past, and what it lets expect.
        self._evidence: dict[int, Evidence] = {}
        self._expected_K: dict[int, Floats] = {}
        self._turns = 0
        self._memory = MEMORY
        # The choice that stands: of which requests, up to which turn, and whom to draft.
        self._held_ids: list[int] = []
        self._held_until, self._held = 0, list[bool]()

    def use_calibration(self, table: CalibrationTable) -> None:
        """Trust another table from the next step on; call it between steps.

        Requests that keep their length keep the one of the first table: their texts reproduce.
        """
        self.tables = replace(self.tables, calibration=table)
        self._survival = Survival(table, self.draft_len)

    def wants(self, batch: Batch) -> Sequence[bool]:
        """Drafts for the requests whose past rounds say that it pays, and now and then a probe.

        Nothing of the present round is known here, so it cannot bend the distribution. No probe is
        made where not even drafts that always hold would pay. A request that keeps its length is
        always drafted.
        """
        requests, ids = batch.decode, [request.id for request in batch.decode]
        self._turns += 1
        probe = self._probes()
        if not probe and ids == self._held_ids and self._turns < self._held_until:
            return self._held
        wanted_R = self._pays(batch, self._expected(requests), self._margin(len(requests)))
        self._held_ids, self._held_until = ids, self._turns + HOLD
        self._held = [
            self._always(request.params) if keeps_length(request.params) else wanted
            for request, wanted in zip(requests, wanted_R, strict=True)
        ]
        if probe and self._could_pay(batch):
            self._held_until = 0  # what it shows counts from the next step on
            return [True] * len(requests)
        return self._held

    def _probes(self) -> bool:
        """Whether all are to be drafted in this step, to see how they do."""
        return self._turns % PROBE_EVERY == 0

    def _margin(self, requests: int) -> float:
        """Share by which drafts for so many requests must raise Θ."""
        return MARGIN

    def _always(self, params: SamplingParams) -> bool:
        """Whether a request that keeps its length is drafted; it is so in every step or in none."""
        return True

    def _pays(self, batch: Batch, survival_RK: Sequence[Floats], margin: float) -> list[bool]:
        """Which of the decode requests would pay for drafts that survive like this."""
        count, prompts = len(batch.decode), batch.prefill_rows
        draft_s_R = self._draft_times_to(count)
        verify_s_B = self._verify_times(prompts + count, prompts, count, count)
        return admission.worth_drafting(survival_RK, draft_s_R, verify_s_B, margin)

    def _could_pay(self, batch: Batch) -> bool:
        """Whether drafts would pay for anybody if they always held."""
        return any(self._pays(batch, [[1.0] * self.draft_len] * len(batch.decode), MARGIN))

    def _expected(self, requests: Sequence[Request]) -> list[Floats]:
        """Survival [R, K] as each request's past rounds have it: the mean one, scaled."""
        evidence: dict[int, Evidence] = {}
        expected_RK: list[Floats] = []
        for request in requests:
            mean = self._survival.mean(request.params)
            known = self._evidence.get(request.id) or Evidence(self._memory)
            known.take(request.rounds, mean)
            ratio, evidence[request.id] = known.ratio(*self._standing(request.params)), known
            expected_RK.append([min(a * ratio, 1.0) for a in mean.survival_K])
        self._evidence = evidence
        self._expected_K = {r.id: a_K for r, a_K in zip(requests, expected_RK, strict=True)}
        return expected_RK

    def _standing(self, params: SamplingParams) -> tuple[float, float]:
        """Accepted over promised of a request that has shown nothing yet, and its weight."""
        return 1.0, PRIOR

    def _draft_times_to(self, requests: int) -> list[DraftTimes]:
        """Of 0, 1, … requests, up to so many or more: slots and seconds of drafting them."""
        cost, block = self.tables.cost, self.draft_len
        choices = range(1, block + 1) if cost.short else [block]
        while len(self._draft_s) <= requests:
            count = len(self._draft_s)
            self._draft_s.append([(slots, cost.draft_s(count, slots)) for slots in choices])
        return self._draft_s

    def _draft_times(self, frame: Frame) -> DraftTimes:
        """Slots that a batch may draft, with the seconds they take.

        A request that keeps its length always gets a whole block: what its slots say hangs on how
        many there are, which must not hang on its company.
        """
        requests = len(frame.lengths_R)
        times = self._draft_times_to(requests)[requests]
        return times if len(frame.free) == requests else times[-1:]

    def _with_spare(self, best: admission.Block, frame: Frame) -> int:
        """Slots to draft: those that pay, and one more where it costs next to nothing."""
        times = dict(self._draft_times(frame))
        now_s, round_s = times[best.slots], times[best.slots] + frame.verify_s_B[best.count]
        spare_s = times.get(best.slots + 1)
        spare = spare_s is not None and spare_s - now_s <= SPARE_SHARE * round_s
        return best.slots + spare

    def _verify_times(self, rows: int, prompts: int, drafted: int, requests: int) -> list[float]:
        """Seconds of the target's forward with 0, 1, … draft tokens, less what the prompts take.

        Prompts have to be run whatever is drafted. In the denominator of Θ their time would make
        drafts look cheap that cost more a token than a step without prompts and drafts.

        Args:
            rows: in the batch without any.
            prompts: rows of prompts among these.
            drafted: requests that may have some.
            requests: that decode, drafted or not.
        """
        cost = self.tables.cost
        requests = min(requests, cost.most_requests)
        if requests not in self._verify_s:
            self._verify_s[requests] = self._laid_out(cost, requests)
        seconds = self._verify_s[requests]
        rows = min(rows, len(seconds) - 1)
        debt = seconds[rows] - seconds[max(rows - prompts, 0)]
        return [s - debt for s in seconds[rows : rows + drafted * self.draft_len + 1]]

    def _laid_out(self, cost: CostTable, requests: int) -> list[float]:
        """Seconds of the target's forward with 0, 1, … rows of so many requests."""
        return cost.verify_s(MOST_TOKENS, requests).tolist()

    def plan(self, batch: Batch, drafts: DraftBlock) -> Sequence[int]:
        """Lengths that maximise Θ for the requests without a seed of their own.

        A request with one keeps a fixed length: above temperature 0 the verify length decides
        which random number makes a token, and its text must reproduce (algorithms §6).
        """
        frame = self._frame(batch)
        if frame.free:
            chosen = [batch.decode[r] for r in frame.free]
            survival_RK = self._survival_of(chosen, frame.free, drafts)
            admitted_R = self.admit(chosen, survival_RK, frame)
            for r, length in zip(frame.free, admitted_R, strict=True):
                frame.lengths_R[r] = length
        return frame.lengths_R

    def _survival_of(
        self, requests: Sequence[Request], places: Sequence[int], drafts: DraftBlock
    ) -> Sequence[Floats]:
        """Survival [R, K] of the drafts of some requests, by their places in the batch."""
        assert drafts.confidence_RK is not None
        sure_RK = drafts.confidence_RK.tolist()
        return self._survival.of(requests, [sure_RK[r] for r in places])

    def _seconds(self, frame: Frame, slots: int) -> list[float]:
        """Time of the whole round with 0, 1, … draft tokens of the free requests, so many drafted.

        Where the table knows whole blocks alone, they are what any draft costs.
        """
        requests = len(frame.lengths_R)
        times = self._draft_times_to(requests)[requests]
        draft_s = times[min(slots, len(times)) - 1][1]
        return [draft_s + s for s in frame.verify_s_B]

    def _frame(self, batch: Batch) -> Frame:
        """What stands before the present drafts are looked at."""
        requests, committed = batch.decode, float(len(batch.plain) + len(batch.decode))
        lengths_R, free = [0] * len(requests), []
        for r, request in enumerate(requests):
            if keeps_length(request.params):
                lengths_R[r] = self.steady_length(request.params)
                committed += self._survival.mean(request.params).tokens[lengths_R[r]]
            else:
                free.append(r)
        rows = batch.other_rows + len(requests) + sum(lengths_R)
        deciding = len(requests) + len(batch.plain)
        seconds_B = self._verify_times(rows, batch.prefill_rows, len(free), deciding)
        return Frame(free, lengths_R, seconds_B, committed)

    @abstractmethod
    def admit(
        self, requests: Sequence[Request], survival_RK: Sequence[Floats], frame: Frame
    ) -> list[int]:
        """Verify lengths of the requests that may have any.

        Args:
            survival_RK: calibrated a_{r,k} of their drafts.
        """

    def steady_length(self, params: SamplingParams) -> int:
        """The best fixed length for one request alone, from the first tables and nothing else."""
        key = way(params)
        if key not in self._steady:
            draft_s = self.tables.cost.draft_s(1)
            seconds_K = [draft_s + s for s in self._verify_times(1, 0, 1, 1)]
            make_room(self._steady)
            survival_K = self._first.mean(params).survival_K
            self._steady[key] = admission.capacity([survival_K], seconds_K)
        return self._steady[key]


@dataclass(frozen=True, slots=True)
class Frame:
    """What a round costs and gives before any free request has a draft verified.

    Attributes:
        free: places in the batch of the requests without a fixed length.
        lengths_R: verify lengths of the others; 0 for the free ones.
        verify_s_B: time of the target's forward with 0, 1, … draft tokens of the free ones.
        committed: tokens expected from the batch.
    """

    free: list[int]
    lengths_R: list[int]
    verify_s_B: list[float]
    committed: float


def keeps_length(params: SamplingParams) -> bool:
    """Its verify length decides which random number makes a token, and its text must reproduce."""
    return params.seed is not None and params.temperature > 0
