"""What a step leaves behind: the new tokens of each request, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum

from dspark.core.requests import Request, RoundRecord
from dspark.core.rounds import TokenLogprobs


class TokenKind(str, Enum):
    """How a committed token came about."""

    ACCEPTED = "accepted"  # a draft token that passed the test
    DRAWN = "drawn"  # the correction or bonus token after a test
    PLAIN = "plain"  # straight from the target: after the prompt, or without drafts


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one engine step added to one request.

    Attributes:
        token_ids: the new tokens, also at the end of `request.output_ids`.
        kinds: how each of them came about.
        finished: the request ended in this step; `request.finish` says why.
        record: of the round that made them; None for what follows a prompt.
        logprobs: of the new tokens; None unless the request asks for them.
    """

    request: Request
    token_ids: list[int]
    kinds: list[TokenKind]
    finished: bool
    record: RoundRecord | None = None
    logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one engine step was, what it brought and how long it took.

    Attributes:
        decoding: requests that had an anchor, drafted or not.
        drafted: those that were drafted.
        slots: draft tokens made for each of these; 0 in a plain step.
        rows: rows of the target forward that belong to the decoding ones.
        prompts: rows of prompts beside them.
        late: rows that had waited before the drafter's context took them in for this step.
        seconds: of the whole step.
        outputs: what each request got.
        peaks: the confidences of its rounds are largest draft probabilities.
    """

    decoding: int
    drafted: int
    slots: int
    rows: int
    prompts: int
    late: int
    seconds: float
    outputs: Sequence[StepOutput] = ()
    peaks: bool = False


@dataclass(slots=True)
class StepStats:
    """Where the time of engine steps went, in seconds, and what they handled.

    Attributes:
        draft_s: making drafts.
        verify_s: target forwards (prompts included), verification, drafters' context.
        schedule_s: deciding whom to draft and how much to verify.
        other_s: making the batch and committing.
        steps: steps counted in.
        batch_tokens: rows of the target forwards, prompts included.
        committed: tokens added to texts.
    """

    draft_s: float = 0.0
    verify_s: float = 0.0
    schedule_s: float = 0.0
    other_s: float = 0.0
    steps: int = 0
    batch_tokens: int = 0
    committed: int = 0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.draft_s + self.verify_s + self.schedule_s + self.other_s

    def since(self, earlier: StepStats) -> StepStats:
        """What was added after an earlier copy of these totals."""
        names = [field.name for field in fields(self)]
        return StepStats(**{name: getattr(self, name) - getattr(earlier, name) for name in names})
