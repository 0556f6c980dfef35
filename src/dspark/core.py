"""Plain records that pass between the parts of the engine.

Nothing here imports torch: the scheduler, the queue and their tests run without it. Array
suffixes: R requests, K block slots, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from dspark.errors import RequestError

if TYPE_CHECKING:  # arrays are torch tensors at run time; the records do not need to know
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request wants its text drawn.

    Attributes:
        temperature: 0 is greedy; above 0 the logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this mass; 1 keeps all.
        seed: key of the request's random numbers; None lets the engine's seed and the request's
            id stand for it. A request with a seed of its own gives the same text every time.
        max_new_tokens: length limit of the answer, stop token included.
        ignore_stop: go on after a stop token (for measurements).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 256
    ignore_stop: bool = False

    def __post_init__(self) -> None:
        limits = [
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "0 to 100"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            ("seed", self.seed, 0 <= (self.seed or 0) < 2**63, "0 to 2**63 - 1"),
        ]
        for name, value, fine, allowed in limits:
            if not fine:
                raise RequestError(f"{name} is out of range", found=value, fix=f"Use {allowed}")


class FinishReason(str, Enum):
    """Why a request ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(slots=True, eq=False)  # two requests are never the same one
class Request:
    """One prompt on its way through the engine.

    Attributes:
        id: key of the request, unique in the engine; part of the random-number key.
        prompt_ids: token ids of the prompt, not empty.
        params: how to draw.
        sample: index of this answer among several for the same prompt.
        output_ids: tokens committed so far, the stop token included.
        slot: row of the caches held by this request; None while it waits.
        round: verification rounds done so far.
    """

    id: int
    prompt_ids: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    sample: int = 0
    output_ids: list[int] = field(default_factory=list)
    slot: int | None = None
    round: int = 0
    finish: FinishReason | None = None
    rounds: list[RoundRecord] = field(default_factory=list)

    @property
    def anchor_pos(self) -> int:
        """Position of the last committed token, which has not been through the target."""
        return len(self.prompt_ids) + len(self.output_ids) - 1

    @property
    def anchor(self) -> int:
        """The last committed token (the paper's x_0, or bonus token)."""
        return self.output_ids[-1]


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests of one engine step.

    Attributes:
        prefill: newly admitted; their prompts have not been through the target.
        decode: have an anchor and are drafted; in order of cache slot.
        plain: have an anchor and are not drafted in this step; in order of cache slot.
    """

    prefill: list[Request]
    decode: list[Request]
    plain: list[Request] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.prefill or self.decode or self.plain)

    @property
    def other_rows(self) -> int:
        """Rows of the target forward beside those of drafted requests."""
        return self.prefill_rows + len(self.plain)

    @property
    def prefill_rows(self) -> int:
        """Prompt tokens that this step runs through the target."""
        return sum(len(request.prompt_ids) for request in self.prefill)


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What one draft-and-verify round did for one request.

    Attributes:
        drafted: draft tokens made.
        verified: draft tokens sent to the target (verify length).
        accepted: verified draft tokens that passed the test and stand in the text.
        committed: tokens added to the text: accepted ones and, unless a stop or the length
            limit cut it, the correction or bonus token.
        stopped: an accepted or drawn stop token ended the text in this round.
        confidence: c_k of the drafted slots; empty where the drafter has no confidence head.
    """

    drafted: int
    verified: int
    accepted: int
    committed: int
    stopped: bool = False
    confidence: tuple[float, ...] = ()


@dataclass(slots=True)
class DraftBlock:
    """Draft tokens of one round for R requests.

    Attributes:
        draft_ids_RK: target-vocabulary ids of the drafted tokens, int64.
        draft_probs_RKV: the distributions they were drawn from, over the draft vocabulary,
            float32; None when every request is greedy.
        confidence_RK: c_k, the probability that slot k survives given that the slots before
            it did; None without a confidence head.
    """

    draft_ids_RK: Tensor
    draft_probs_RKV: Tensor | None = None
    confidence_RK: Tensor | None = None


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """How many draft tokens of each request go to the target this round."""

    verify_len: tuple[int, ...]

    @property
    def batch_tokens(self) -> int:
        """B: rows of the target forward, one anchor row a request included."""
        return len(self.verify_len) + sum(self.verify_len)


@dataclass(slots=True)
class Verdict:
    """Outcome of verification for R requests.

    Attributes:
        accepted: number of draft tokens accepted, per request.
        next_id: the correction (after a rejection) or bonus token, per request.
        first_id: first token of the answer of each request that was prefilled in this step.
        plain_id: next token of each request that was not drafted.
    """

    accepted: list[int]
    next_id: list[int]
    first_id: list[int] = field(default_factory=list)
    plain_id: list[int] = field(default_factory=list)


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
    """

    request: Request
    token_ids: list[int]
    kinds: list[TokenKind]
    finished: bool


@dataclass(slots=True)
class StepStats:
    """Where the time of engine steps went, in seconds, and what they handled.

    Attributes:
        draft_s: making drafts.
        verify_s: target forwards (prompts included), verification, drafters' context.
        other_s: choosing the batch, planning and committing.
        steps: steps counted in.
        batch_tokens: rows of the target forwards, prompts included.
        committed: tokens added to texts.
    """

    draft_s: float = 0.0
    verify_s: float = 0.0
    other_s: float = 0.0
    steps: int = 0
    batch_tokens: int = 0
    committed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
