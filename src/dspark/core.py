"""Plain records that pass between the parts of the engine.

Nothing here imports torch: the scheduler, the queue and their tests run without it. Array
suffixes: R requests, K block slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from dspark.errors import RequestError

if TYPE_CHECKING:  # the records do not need to know
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Grammar(Protocol):
    """What answers may look like; many requests may share one."""

    def start(self) -> GrammarState:
        """The state of a request that has said nothing yet."""


class GrammarState(Protocol):
    """How far one request's answer has come in its grammar."""

    def advance(self, ids: Sequence[int]) -> None:
        """Take in committed tokens."""

    def allowed(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
        """Which tokens [V] may follow the committed ones and then ``ids``; None where ``ids``
        themselves are not allowed."""


MAX_LOGPROBS = 20  # as many as OpenAI's interface asks for


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the target thought of a committed token, before temperature and filters.

    Attributes:
        logprob: natural logarithm of its probability.
        top: ids and log-probabilities of the likeliest tokens, best first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


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
        grammar: what the answer may look like; None allows everything.
        logprobs: tell each token's log-probability and those of so many likeliest tokens; None
            tells nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 256
    ignore_stop: bool = False
    grammar: Grammar | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        limits = [
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "0 to 100"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            (
                "logprobs",
                self.logprobs,
                0 <= (self.logprobs or 0) <= MAX_LOGPROBS,
                f"0 to {MAX_LOGPROBS}",
            ),
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
        cached: leading positions of its text whose keys and values lie in the caches.
        round: verification rounds done so far.
        grammar: where its answer stands in the grammar of its parameters.
    """

    id: int
    prompt_ids: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    sample: int = 0
    output_ids: list[int] = field(default_factory=list)
    slot: int | None = None
    cached: int = 0
    round: int = 0
    grammar: GrammarState | None = None
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

    @property
    def context_len(self) -> int:
        """Positions that must lie in the caches before a round: all before the anchor, or the
        whole prompt where there is no anchor yet."""
        return self.anchor_pos if self.output_ids else len(self.prompt_ids)

    @property
    def ready(self) -> bool:
        """It has an anchor and its context, so that a round can be drafted."""
        return bool(self.output_ids) and self.cached == self.anchor_pos


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions ``start`` to ``end - 1`` of a request's context, to run through the target.

    The context is the prompt and, for a request that lost its place in the caches, what it has
    said so far without the anchor.
    """

    request: Request
    start: int
    end: int

    @property
    def rows(self) -> int:
        return self.end - self.start

    @property
    def starts_answer(self) -> bool:
        """Its last position is the prompt's last, so the first token of the answer follows."""
        return self.end == len(self.request.prompt_ids) and not self.request.output_ids

    def ids(self) -> list[int]:
        """Token ids of its positions."""
        return self._text()[self.start : self.end]

    def next_id(self) -> int:
        """The known token behind it; there is none where it starts the answer."""
        return self._text()[self.end]

    def _text(self) -> list[int]:
        return [*self.request.prompt_ids, *self.request.output_ids]


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests of one engine step.

    Attributes:
        prefill: parts of contexts that have not been through the target, in order of arrival.
        decode: have an anchor and are drafted; in order of cache slot.
        plain: have an anchor and are not drafted in this step; in order of cache slot.
        draft_len: draft tokens to make for each; 0 leaves it to the engine's policy.
    """

    prefill: list[Chunk]
    decode: list[Request]
    plain: list[Request] = field(default_factory=list)
    draft_len: int = 0

    def __bool__(self) -> bool:
        return bool(self.prefill or self.decode or self.plain)

    @property
    def other_rows(self) -> int:
        """Rows of the target forward beside those of drafted requests."""
        return self.prefill_rows + len(self.plain)

    @property
    def prefill_rows(self) -> int:
        """Prompt tokens that this step runs through the target."""
        return sum(chunk.rows for chunk in self.prefill)

    @property
    def starting(self) -> list[Request]:
        """Requests whose answers start in this step."""
        return [chunk.request for chunk in self.prefill if chunk.starts_answer]


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
        lengths: drafted tokens of each request that count; None where all do.
    """

    draft_ids_RK: Tensor
    draft_probs_RKV: Tensor | None = None
    confidence_RK: Tensor | None = None
    lengths: Sequence[int] | None = None


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
        first_id: first token of each answer that starts in this step.
        plain_id: next token of each request that was not drafted.
        logprobs: by request id, of the accepted tokens and the one after; where asked for.
    """

    accepted: list[int]
    next_id: list[int]
    first_id: list[int] = field(default_factory=list)
    plain_id: list[int] = field(default_factory=list)
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)


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
