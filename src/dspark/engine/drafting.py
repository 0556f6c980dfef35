"""How far to draft, and all else that is settled before the drafts exist (DSpark §3.2.2, §5.2).

Suffixes: R requests, K block slots, B draft tokens in the batch.
"""

from __future__ import annotations

from dataclasses import replace

from dspark.core import Batch, DraftDecision, StepRecord
from dspark.engine.acceptance import AcceptanceEstimator, ConfidenceMemory, keeps_length
from dspark.engine.cost_model import CostModel
from dspark.engine.draft_gate import Choice, FixedLengths
from dspark.maths import admission

# A slot beyond those expected to pay is drafted, as room for a draft that is surer than expected,
# where it adds no more than this share to the round.
SPARE_SHARE = 0.01


class DraftPlanner:
    """Makes the `DraftDecision` of a batch whose drafted requests are chosen.

    Args:
        memory: settles the capacity from confidences two steps old (`pipelined`, §5.2), and no
            more slots than it has room for; None leaves it to Algorithm 1 (`causal`).
    """

    def __init__(
        self,
        acceptance: AcceptanceEstimator,
        cost: CostModel,
        fixed: FixedLengths,
        memory: ConfidenceMemory | None = None,
    ) -> None:
        self.acceptance, self.cost, self.fixed = acceptance, cost, fixed
        self._memory = memory
        self._last: tuple[Choice, DraftDecision] | None = None

    def decide(self, batch: Batch, choice: Choice) -> DraftDecision:
        """Slots, fixed lengths, seconds and, with a memory, the capacity.

        While a choice holds, so does its decision, if it goes by nothing else.
        """
        if self._last is not None and self._last[0] is choice:
            held = self._last[1]
            if held.batch.prefill_rows == batch.prefill_rows:
                return replace(held, batch=replace(held.batch, prefill=batch.prefill))
        decision = self._decide(batch, choice)
        holds = self._memory is None and len(decision.free) == len(decision.fixed_R)
        self._last = (choice, decision) if holds else None
        return decision

    def _decide(self, batch: Batch, choice: Choice) -> DraftDecision:
        chosen = list(zip(batch.decode, choice.wanted_R, choice.expected_RK, strict=True))
        batch = batch.split(choice.wanted_R)
        drafted = batch.decode
        if not drafted:
            return DraftDecision(batch)
        fixed_R = [self.fixed.length(r.params) if keeps_length(r.params) else None for r in drafted]
        free = [request for request, length in zip(drafted, fixed_R, strict=True) if length is None]
        committed = float(len(chosen))
        for request, length in zip(drafted, fixed_R, strict=True):
            if length is not None:
                committed += self.acceptance.mean(request.params).tokens[length]
        rows = batch.other_rows + len(drafted) + sum(length or 0 for length in fixed_R)
        verify_s_B = self.cost.verify_s(rows, batch.prefill_rows, len(free), len(chosen))
        if self._memory is None:
            expected_RK = [a for r, wanted, a in chosen if wanted and not keeps_length(r.params)]
        else:
            expected_RK = self._memory.expected(free)
        # A request that keeps its length always gets a whole block: what its slots say depends on
        # how many there are, which must not depend on its company.
        times = self.cost.draft_times(len(drafted))[len(drafted)]
        times = times if len(free) == len(drafted) else times[-1:]
        best = admission.best_block(expected_RK, times, verify_s_B, committed)
        slots, capacity = _with_spare(best, dict(times), verify_s_B), None
        if self._memory is not None:
            capacity = best.count
            if len(free) == len(drafted):
                slots = max(min(slots, capacity), 1)
        draft_s = self.cost.draft_s(len(drafted), slots)
        seconds_B = [draft_s + s for s in verify_s_B]
        return DraftDecision(
            batch, slots, tuple(fixed_R), expected_RK, seconds_B, committed, capacity, choice.least
        )

    def observe(self, step: StepRecord) -> None:
        """Remember the confidences of a committed step."""
        if self._memory is not None:
            self._memory.observe(step)


def _with_spare(best: admission.Block, draft_s: dict[int, float], verify_s_B: list[float]) -> int:
    """Slots to draft: those that pay, and one more where it costs next to nothing.

    Args:
        draft_s: seconds of drafting, by slots.
    """
    now_s = draft_s[best.slots]
    round_s, spare_s = now_s + verify_s_B[best.count], draft_s.get(best.slots + 1)
    spare = spare_s is not None and spare_s - now_s <= SPARE_SHARE * round_s
    return best.slots + spare
