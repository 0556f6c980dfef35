"""Whom to draft: the requests whose past rounds say that it pays (DSpark §3.2.2, §5.2).

A gate knows nothing of the present round, so it cannot bend the distribution.

Suffixes: R requests, K block slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dspark.core import Batch, Request, SamplingParams, StepRecord
from dspark.engine.acceptance import AcceptanceEstimator, Calibrated, keeps_length, make_room, way
from dspark.engine.cost_model import CostModel
from dspark.engine.survival import Floats
from dspark.maths import admission
from dspark.tables.calibration import CalibrationTable, Key

# Steps from probe to probe. All requests are probed in the same step, which costs less than each
# at a time of its own: drafting for many takes little longer than for a few.
PROBE_EVERY = 64
# Steps that a choice of whom to draft holds for while the same requests run: what is expected of
# them moves slowly, and choosing takes as long as all else a policy does.
HOLD = 4
# Share by which drafts must raise Θ over a step without any. A round with drafts takes longer than
# drafting and verifying: choosing what to verify alone is 2 % of a round of 8 users.
MARGIN = 0.03


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom to draft of a batch's decode requests.

    Attributes:
        wanted_R: which of them.
        expected_RK: survival that past rounds let expect.
        least: draft tokens to verify at least, so that a try shows something.
    """

    wanted_R: Sequence[bool]
    expected_RK: Sequence[Floats]
    least: int = 0


class Gate(Protocol):
    """Chooses whom to draft."""

    def choose(self, batch: Batch) -> Choice:
        """Of a batch's decode requests, from finished rounds alone."""

    def observe(self, step: StepRecord) -> None:
        """Learn from a committed step."""


class FixedLengths:
    """Verify lengths of requests with a seed of their own: the best for one request alone.

    They come from the first tables and nothing else, so texts reproduce whatever is learned.

    Args:
        must_pay: a length that is no better than plain decoding counts as 0, and is not drafted.
    """

    def __init__(
        self, calibration: CalibrationTable | None, cost: CostModel, must_pay: bool = False
    ) -> None:
        self._calibrated, self._cost = Calibrated(calibration, cost.block_size), cost
        self._must_pay = must_pay
        self._known: dict[Key, int] = {}

    def length(self, params: SamplingParams) -> int:
        """The length of requests with these parameters."""
        key = way(params)
        if key not in self._known:
            make_room(self._known)
            self._known[key] = self._best(params)
        return self._known[key]

    def drafts(self, params: SamplingParams) -> bool:
        """Whether they are drafted; it is so in every step or in none."""
        return not self._must_pay or self.length(params) > 0

    def _best(self, params: SamplingParams) -> int:
        mean, draft_s = self._calibrated.mean(params), self._cost.table.draft_s(1)
        verify_s_K = self._cost.verify_s(1, 0, 1, 1)
        length = admission.capacity([mean.survival_K], [draft_s + s for s in verify_s_K])
        theta = (1 + mean.tokens[length]) / (draft_s + verify_s_K[length])
        pays = not self._must_pay or theta > (1 + MARGIN) / verify_s_K[0]
        return length if pays else 0


class DraftGate:
    """Drafts for the requests for whom they pay, and now and then a probe of all.

    A request that keeps its length is drafted always, or never.

    Args:
        probe_every: steps from probe to probe; 0 never probes. No probe is made where not even
            drafts that always hold would pay.
    """

    def __init__(
        self,
        acceptance: AcceptanceEstimator,
        cost: CostModel,
        fixed: FixedLengths,
        probe_every: int = PROBE_EVERY,
    ) -> None:
        self.acceptance, self.cost, self.fixed = acceptance, cost, fixed
        self._probe_every, self._turns = probe_every, 0
        # The choice that holds: of which requests, and up to which turn.
        self._ids: list[int] = []
        self._until, self._held = 0, Choice((), ())

    def choose(self, batch: Batch) -> Choice:
        """The choice that holds, or a new one."""
        self._turns += 1
        ids = [request.id for request in batch.decode]
        probe = bool(self._probe_every) and self._turns % self._probe_every == 0
        if probe or ids != self._ids or self._turns >= self._until:
            self._ids, self._until = ids, self._turns + HOLD
            self._held = self._best(batch)
            if probe and self.could_pay(batch):
                self.release()
                return replace(self._held, wanted_R=[True] * len(ids))
        return self._held

    def observe(self, step: StepRecord) -> None:
        """Nothing to learn: past rounds are read from the requests."""

    def release(self) -> None:
        """Choose anew in the next step."""
        self._until = 0

    def could_pay(self, batch: Batch) -> bool:
        """Whether drafts would pay for anybody if they always held."""
        ones_RK = [[1.0] * self.cost.block_size] * len(batch.decode)
        return any(self.pays(batch, ones_RK, MARGIN))

    def pays(self, batch: Batch, survival_RK: Sequence[Floats], margin: float) -> list[bool]:
        """Which of the decode requests would pay for drafts that survive like this."""
        count, prompts = len(batch.decode), batch.prefill_rows
        verify_s_B = self.cost.verify_s(prompts + count, prompts, count, count)
        return admission.worth_drafting(
            survival_RK, self.cost.draft_times(count), verify_s_B, margin
        )

    def kept(self, request: Request, wanted: bool) -> bool:
        """Whether a request is drafted that is wanted or not, if its length is not fixed."""
        fixed = keeps_length(request.params)
        return self.fixed.drafts(request.params) if fixed else wanted

    def _best(self, batch: Batch) -> Choice:
        expected_RK = self.acceptance.expected(batch.decode)
        margin = (1 + MARGIN) * self.cost.correction.ratio(len(batch.decode)) - 1
        pays_R = self.pays(batch, expected_RK, margin)
        return Choice(list(map(self.kept, batch.decode, pays_R)), expected_RK)
