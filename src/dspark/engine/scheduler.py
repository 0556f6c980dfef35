"""From a drafter's confidences to verify lengths (DSpark §3.2.2); the file to read first.

    past rounds          ──> DraftGate ──> slots that pay ──────────────> DraftDecision
    DraftDecision, drafts ──> AcceptanceEstimator ──> Algorithm 1 ──> verify lengths

Verification stays lossless because a draft token's fate never depends on the token itself: the
decision knows finished rounds alone, and no later confidence admits an earlier token.

Suffixes: R requests, K block slots, B draft tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dspark.core import Batch, DraftBlock, DraftDecision, StepRecord
from dspark.engine.draft_gate import Gate
from dspark.engine.drafting import DraftPlanner
from dspark.engine.policies import Policy, PolicyTables
from dspark.maths import admission
from dspark.tables.calibration import CalibrationTable


class Scheduler:
    """Applies a policy to a batch and keeps what is verified inside the caches."""

    def __init__(self, policy: Policy, max_len: int) -> None:
        self.policy, self.max_len = policy, max_len

    def decide(self, batch: Batch) -> DraftDecision:
        """Whom to draft and how far, before any draft of this round exists."""
        plain = not self.policy.draft_len or not batch.decode
        return DraftDecision(batch) if plain else self.policy.decide(batch)

    def plan(self, decision: DraftDecision, drafts: DraftBlock | None) -> list[int]:
        """Verify lengths [R] of the batch's decode requests."""
        requests = decision.batch.decode
        if drafts is None:
            return [0] * len(requests)
        lengths = self.policy.lengths(decision, drafts)
        if drafts.lengths is not None:
            lengths = list(map(min, lengths, drafts.lengths))
        # The anchor itself takes a position too. The bound looks at no token, so it is lossless.
        rooms = [self.max_len - 1 - request.anchor_pos for request in requests]
        return list(map(min, lengths, rooms))


class Adaptive(Policy):
    """`auto`, `causal` and `pipelined`: lengths that maximise expected throughput Θ."""

    def __init__(self, name: str, tables: PolicyTables, gate: Gate, planner: DraftPlanner) -> None:
        self.name, self.tables, self.gate, self.planner = name, tables, gate, planner
        self.acceptance, self.draft_len = planner.acceptance, planner.acceptance.block_size
        self.reads_peaks = name == "auto"
        self.needs_confidence = not self.reads_peaks

    def decide(self, batch: Batch) -> DraftDecision:
        return self.planner.decide(batch, self.gate.choose(batch))

    def lengths(self, decision: DraftDecision, drafts: DraftBlock) -> Sequence[int]:
        survival_RK = self.acceptance.survival(decision, drafts)
        if decision.capacity is None:
            admitted = admission.causal(survival_RK, decision.seconds_B, decision.committed)
        else:
            admitted = admission.pipelined(survival_RK, decision.capacity)
        lengths_R = [length or 0 for length in decision.fixed_R]
        for r, length in zip(decision.free, admitted, strict=True):
            lengths_R[r] = max(length, decision.least)
        return lengths_R

    def observe(self, step: StepRecord) -> None:
        self.gate.observe(step)
        self.planner.observe(step)

    def use_calibration(self, table: CalibrationTable) -> None:
        """Trust another table from the next step on; call it between steps."""
        self.tables = replace(self.tables, calibration=table)
        self.acceptance.use(table)
