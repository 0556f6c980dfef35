"""The gate of the policy `auto`, which needs nothing from the user.

It learns three things while serving, all of them from finished rounds alone, so that verification
stays lossless (docs/algorithms.md, "Scheduling"): how long rounds with drafts take against steps
without any, by the engine's own steps; how well drafts do in each way of sampling, whosever they
are; and how sure drafts are, where the drafter has no confidence head.

What learning costs is bounded: a useless drafter is drafted with in two of every 512 steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dspark.core import Batch, StepRecord
from dspark.engine.acceptance import keeps_length
from dspark.engine.draft_gate import MARGIN, Choice, DraftGate

# Draft tokens that a request is judged by at least, in blocks of which every slot is verified.
JUDGED = 32
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


class ExploringGate:
    """Drafts for the requests for whom they pay; now and then for nobody, or for everybody.

    Args:
        gate: says for whom drafts pay; it must not probe.
    """

    def __init__(self, gate: DraftGate) -> None:
        self._gate = gate
        self._turns: dict[int, _Turns] = {}  # by bit length of the number of requests

    def choose(self, batch: Batch) -> Choice:
        """As the gate does, or out of line to see how that does."""
        choice = self._gate.choose(batch)
        turns = self._turns.setdefault(len(batch.decode).bit_length(), _Turns())
        if batch.prefill:  # such steps teach nothing
            return choice
        if turns.trying:
            return self._try(batch, choice, turns)
        if any(choice.wanted_R):
            return self._in_line(batch, choice, turns)
        turns.run += 1
        if turns.run < turns.gap:
            return choice
        turns.run = 0
        if not self._gate.could_pay(batch):
            return choice
        return self._try(batch, self._begin(batch, turns), turns)

    def observe(self, step: StepRecord) -> None:
        """Learn from a step: times, ways of sampling, largest probabilities."""
        self._gate.cost.correction.take(step)
        self._gate.acceptance.learn(step)

    def _in_line(self, batch: Batch, choice: Choice, turns: _Turns) -> Choice:
        """As wanted; of a run of drafted steps some are plain, or draft for all, not for some."""
        turns.run, turns.gap = 0, FIRST_TRY
        turns.drafted += 1
        if turns.drafted not in PLAIN_PROBES and turns.drafted % PLAIN_EVERY:
            return choice
        turns.whole = not all(choice.wanted_R) and not turns.whole
        if turns.whole:
            return self._all(batch, choice)
        return replace(choice, wanted_R=[self._gate.kept(r, False) for r in batch.decode])

    def _begin(self, batch: Batch, turns: _Turns) -> Choice:
        """Begin another try of drafts after a run of plain steps.

        Where the times of late alone speak against drafts the tries stay frequent: those may have
        been slow for a reason that has gone.
        """
        expected_RK = self._gate.acceptance.expected(batch.decode)
        hopeful = any(self._gate.pays(batch, expected_RK, MARGIN))
        turns.gap = min(2 * turns.gap, PLAIN_EVERY if hopeful else LAST_TRY)
        turns.trying = TRY_STEPS
        self._gate.acceptance.doubt()
        return Choice((), expected_RK)

    def _try(self, batch: Batch, choice: Choice, turns: _Turns) -> Choice:
        """A few of many requests: what they show counts for the others, and costs less."""
        turns.trying -= 1
        apart = max(len(batch.decode) // MOST_TRIED, 1)
        tried = self._all(batch, choice)
        wanted_R = [
            wants and (place % apart == 0 or keeps_length(request.params))
            for place, (wants, request) in enumerate(zip(tried.wanted_R, batch.decode, strict=True))
        ]
        return replace(tried, wanted_R=wanted_R)

    def _all(self, batch: Batch, choice: Choice) -> Choice:
        self._gate.release()  # what it shows counts from the next step on
        wanted_R = [self._gate.kept(request, True) for request in batch.decode]
        return replace(choice, wanted_R=wanted_R, least=1)
