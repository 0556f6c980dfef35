"""The policy that needs nothing from the user: `auto`.

`causal`, and three things that it learns while serving, all of them from finished rounds alone, so
that verification stays lossless (algorithms §8): how long rounds with drafts take against steps
without any, by the engine's own steps; how well drafts do in each way of sampling, whosever they
are; and how sure drafts are, where the drafter has no confidence head.

What learning costs is bounded: a useless drafter is drafted with in two of every 512 steps.

Suffixes: R requests, K block slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dspark.core import Batch, DraftBlock, Request, SamplingParams, StepRecord
from dspark.engine.adaptive import MARGIN, MOST_TOKENS, Floats, PolicyTables, keeps_length
from dspark.engine.adaptive_policies import Causal
from dspark.engine.peaks import PeakSurvival
from dspark.engine.step_times import StepTimes
from dspark.engine.survival import MEMORY, PRIOR, make_room, way
from dspark.tables.calibration import Key

# Draft tokens that a request is judged by at least, in blocks of which every slot is verified.
JUDGED = 32
# Promised tokens of a way of sampling from which on it is well known.
TOLD = 32
# Rounds of all requests of a way of sampling that a new one is judged by.
WAY_MEMORY = 64
# Plain steps among drafted ones, by how many came before: early, since the table may be rough,
# then seldom.
PLAIN_PROBES, PLAIN_EVERY = (4, 8, 16), 64
# Plain steps before drafts are tried again; twice as many after each try that changed nothing.
FIRST_TRY, LAST_TRY = 8, 512
# Requests of a try, or up to twice as many.
MOST_TRIED = 4
# Steps of a try: in the first the drafter's context catches up, the second shows the cost.
TRY_STEPS = 2


@dataclass(slots=True)
class _Standing:
    """Accepted and promised draft tokens of one way of sampling; older rounds fade."""

    accepted: float = 0.0
    promised: float = 0.0

    def take(self, accepted: int, promised: float) -> None:
        fade = 1 - 1 / WAY_MEMORY
        self.accepted = fade * self.accepted + accepted
        self.promised = fade * self.promised + promised

    @property
    def ratio(self) -> float:
        return (self.accepted + PRIOR) / (self.promised + PRIOR)


@dataclass(slots=True)
class _Turns:
    """When to step out of line, for numbers of requests of one bit length.

    Attributes:
        run: steps in line since the last change of mind or probe.
        drafted: since the engine began, steps with drafts.
        gap: plain steps before the next try.
        trying: steps of the present try that are left.
        whole: the next probe of a batch with drafts for some drafts for all.
    """

    run: int = 0
    drafted: int = 0
    gap: int = FIRST_TRY
    trying: int = 0
    whole: bool = False


@dataclass(slots=True)
class _Learned:
    """What is kept about each way of sampling and each number of requests."""

    standing: dict[Key, _Standing] = field(default_factory=dict)
    turns: dict[int, _Turns] = field(default_factory=dict)


class Auto(Causal):
    """Plain decoding or any verify length, whichever is the fastest by what is known so far."""

    name = "auto"
    needs_confidence = False
    reads_peaks = True

    def __init__(self, tables: PolicyTables, block_size: int) -> None:
        super().__init__(tables, block_size)
        self.times = StepTimes(self._predicted_s)
        self._learned = _Learned()
        self._peaks: PeakSurvival | None = None
        self._memory = max(MEMORY, JUDGED // block_size)
        self._trying = False

    # ---- whom to draft ----------------------------------------------------------------------

    def wants(self, batch: Batch) -> Sequence[bool]:
        """Those whom drafts pay for; now and then nobody, or everybody, to see how that does."""
        wanted, self._trying = super().wants(batch), False
        turns = self._learned.turns.setdefault(len(batch.decode).bit_length(), _Turns())
        if batch.prefill:  # such steps teach nothing
            return wanted
        if turns.trying or (not any(wanted) and self._tries(batch, turns)):
            turns.trying -= 1
            return self._some(batch)
        return self._in_line(batch, wanted, turns)

    def _in_line(self, batch: Batch, wanted: Sequence[bool], turns: _Turns) -> Sequence[bool]:
        """As wanted; of a run of drafted steps some are plain, or draft for all, not for some."""
        if not any(wanted):
            return wanted
        turns.run, turns.gap = 0, FIRST_TRY
        turns.drafted += 1
        if turns.drafted not in PLAIN_PROBES and turns.drafted % PLAIN_EVERY:
            return wanted
        turns.whole = not all(wanted) and not turns.whole
        if turns.whole:
            return self._all(batch)
        return [keeps_length(r.params) and self._always(r.params) for r in batch.decode]

    def _tries(self, batch: Batch, turns: _Turns) -> bool:
        """Whether drafts get another try after a run of plain steps.

        Where the times of late alone speak against drafts the tries stay frequent: those may have
        been slow for a reason that has gone.
        """
        turns.run += 1
        if turns.run < turns.gap:
            return False
        turns.run = 0
        if not self._could_pay(batch):
            return False
        hopeful = any(self._pays(batch, self._expected(batch.decode), MARGIN))
        turns.gap = min(2 * turns.gap, PLAIN_EVERY if hopeful else LAST_TRY)
        turns.trying = TRY_STEPS
        for known in self._evidence.values():  # of before the plain steps, another part of the text
            known.accepted, known.promised = known.accepted / 2, known.promised / 2
        return True

    def _all(self, batch: Batch) -> list[bool]:
        self._trying = True
        self._held_until = 0  # what it shows counts from the next step on
        return [not keeps_length(r.params) or self._always(r.params) for r in batch.decode]

    def _some(self, batch: Batch) -> list[bool]:
        """A few of many requests: what they show stands for the others, and costs less."""
        apart = max(len(batch.decode) // MOST_TRIED, 1)
        chosen = self._all(batch)
        return [
            wants and (place % apart == 0 or keeps_length(request.params))
            for place, (wants, request) in enumerate(zip(chosen, batch.decode, strict=True))
        ]

    def _probes(self) -> bool:
        return False  # `wants` steps out of line on its own

    def _margin(self, requests: int) -> float:
        return (1 + MARGIN) * self.times.ratio(requests) - 1

    def _always(self, params: SamplingParams) -> bool:
        return self.steady_length(params) > 0

    def steady_length(self, params: SamplingParams) -> int:
        """The best fixed length, 0 where plain decoding is better, from the first tables alone."""
        key = way(params)
        if key not in self._steady:
            length = super().steady_length(params)
            plain, *seconds = self._verify_times(1, 0, 1, 1)
            tokens = 1 + self._first.mean(params).tokens[length]
            taken_s = self.tables.cost.draft_s(1) + [plain, *seconds][length]
            if tokens / taken_s <= (1 + MARGIN) / plain:
                self._steady[key] = 0
        return self._steady[key]

    # ---- how much to verify -----------------------------------------------------------------

    def plan(self, batch: Batch, drafts: DraftBlock) -> Sequence[int]:
        """As `causal`; but a try verifies a token of each, or it would show nothing."""
        if drafts.peaks and self._peaks is None:
            self._survival = self._peaks = PeakSurvival(self.draft_len)
        lengths = super().plan(batch, drafts)
        if not self._trying:
            return lengths
        return [
            length if keeps_length(request.params) else max(length, 1)
            for request, length in zip(batch.decode, lengths, strict=True)
        ]

    def _survival_of(
        self, requests: Sequence[Request], places: Sequence[int], drafts: DraftBlock
    ) -> Sequence[Floats]:
        if drafts.confidence_RK is not None:
            return super()._survival_of(requests, places, drafts)
        slots = drafts.draft_ids_RK.shape[1]
        expected = [self._expected_K.get(r.id) or self._mean_K(r.params) for r in requests]
        return [a_K[:slots] for a_K in expected]

    def _mean_K(self, params: SamplingParams) -> Floats:
        return self._survival.mean(params).survival_K

    # ---- what steps show --------------------------------------------------------------------

    def observe(self, step: StepRecord) -> None:
        """Learn from a step."""
        self.times.take(step)
        if not step.drafted:
            return
        for output in step.outputs:
            record, params = output.record, output.request.params
            if record is None or not record.drafted or params.grammar is not None:
                continue
            if record.verified:
                promised = self._survival.mean(params).tokens[record.verified]
                self._standing_of(params).take(record.accepted, promised)
            if self._peaks is not None and self._peaks.take(record, params):
                # The new mean knows what the evidence was against the old one.
                self._evidence.clear()
                self._learned.standing.clear()

    def _standing(self, params: SamplingParams) -> tuple[float, float]:
        """What is known of all requests like it counts for more once many rounds tell."""
        standing = self._standing_of(params)
        return standing.ratio, PRIOR * (1 + min(standing.promised / TOLD, 1.0))

    def _standing_of(self, params: SamplingParams) -> _Standing:
        standing, key = self._learned.standing, way(params)
        if key not in standing:
            make_room(standing)
        return standing.setdefault(key, _Standing())

    def _predicted_s(self, step: StepRecord) -> float:
        """Seconds of a step by the cost table alone."""
        requests = min(step.decoding, self.tables.cost.most_requests)
        verify_s_B = self._verify_s.get(requests)
        if verify_s_B is None:
            verify_s_B = self._laid_out(self.tables.cost, requests)
            self._verify_s[requests] = verify_s_B
        verify_s = verify_s_B[min(step.rows, MOST_TOKENS)]
        times = self._draft_times_to(step.drafted)[step.drafted]
        return verify_s + (times[min(step.slots, len(times)) - 1][1] if step.drafted else 0.0)
