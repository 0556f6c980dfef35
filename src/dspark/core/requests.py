"""What is asked of the engine: prompts, how to draw, and how far each answer has come.

Suffix: V vocabulary.
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

MAX_LOGPROBS = 20  # as many as OpenAI's interface asks for


class Grammar(Protocol):
    """What answers may look like; many requests may share one."""

    def start(self) -> GrammarState:
        """The state of a request that has said nothing yet."""


class GrammarState(Protocol):
    """How far one request's answer has come in its grammar.

    Whatever it raises ends its request and no other.
    """

    def advance(self, ids: Sequence[int]) -> None:
        """Take in committed tokens."""

    def allowed(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
        """Which tokens [V] may follow the committed ones and then ``ids``; None where ``ids``
        themselves are not allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
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
            ("top_k", self.top_k, 0 <= self.top_k < 2**31, "0 to 2**31 - 1"),
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
        confidence: c_k of the drafted slots; without a confidence head their largest draft
            probabilities where the policy asked for these, else empty.
    """

    drafted: int
    verified: int
    accepted: int
    committed: int
    stopped: bool = False
    confidence: tuple[float, ...] = ()

    @property
    def rejected(self) -> bool:
        """The position after the accepted ones was judged and failed.

        Only a token drawn after the accepted ones shows that. Behind an accepted stop token, or
        where the length limit cut the round, the next position was not judged.
        """
        return self.committed > self.accepted and self.accepted < self.verified


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
        grammar_len: leading tokens of its answer that the grammar has taken in.
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
    grammar_len: int = 0
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
