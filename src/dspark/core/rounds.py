"""One step on its way through the engine: batch, decision, drafts, results.

Suffixes: R requests, K block slots, V vocabulary, C clues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dspark.core.requests import Request

if TYPE_CHECKING:  # the records do not need to know
    from torch import Tensor


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
    """

    prefill: list[Chunk]
    decode: list[Request]
    plain: list[Request] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.prefill or self.decode or self.plain)

    def split(self, drafted_R: Sequence[bool]) -> Batch:
        """This batch with only these of the decode requests drafted, and the others plain."""
        pairs = list(zip(self.decode, drafted_R, strict=True))
        plain = [request for request, drafted in pairs if not drafted]
        return Batch(self.prefill, [request for request, drafted in pairs if drafted], plain)

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
class DraftDecision:
    """What is settled about a step before its drafts exist, from past rounds alone.

    It knows no draft token of this round, so nothing in it can bend the distribution. A request is
    *free* if its verify length is settled after drafting.

    Attributes:
        batch: whom to draft (`decode`), and whom not (`plain`).
        slots: draft tokens to make for each of the R drafted requests; 0 where there is none.
        fixed_R: verify lengths that are settled; None for a free request.
        expected_RK: survival of the free requests' drafts by past rounds.
        seconds_B: of the whole round with 0, 1, … draft tokens of the free requests verified.
        committed: tokens expected of the round without any of these.
        capacity: draft tokens of the free requests to verify together; None where confidences
            decide.
        least: draft tokens of each free request to verify at least.
    """

    batch: Batch
    slots: int = 0
    fixed_R: tuple[int | None, ...] = ()
    expected_RK: Sequence[Sequence[float]] = ()
    seconds_B: Sequence[float] = ()
    committed: float = 0.0
    capacity: int | None = None
    least: int = 0

    @property
    def free(self) -> list[int]:
        """Places of the free requests among the drafted ones."""
        return [r for r, length in enumerate(self.fixed_R) if length is None]


@dataclass(slots=True)
class DraftBlock:
    """Draft tokens of one round for R requests.

    Attributes:
        draft_ids_RK: target-vocabulary ids of the drafted tokens, int64.
        draft_probs_RKV: the distributions they were drawn from, over the draft vocabulary,
            float32; None when every request is greedy.
        confidence_RK: c_k, the probability that slot k survives given that the slots before
            it did; None without a confidence head. An informed head's may also mend what those
            before it said, now that their tokens are drawn. Where `peaks`, max_x q_k(x) instead.
        lengths: drafted tokens of each request that count; None where all do.
        clues_RKC: what an informed confidence head goes by, where somebody asked for it.
        peaks: `confidence_RK` holds each slot's largest draft probability, which is a clue to
            survival and no estimate of it; at temperature 0 that of the drafter's own
            distribution at temperature 1. Only where the policy asked for it.
    """

    draft_ids_RK: Tensor
    draft_probs_RKV: Tensor | None = None
    confidence_RK: Tensor | None = None
    lengths: Sequence[int] | None = None
    clues_RKC: Tensor | None = None
    peaks: bool = False


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
class Verdict:
    """Outcome of the test of R requests' drafts.

    Attributes:
        accepted: number of draft tokens accepted, per request.
        next_id: the correction (after a rejection) or bonus token, per request.
    """

    accepted: list[int]
    next_id: list[int]


@dataclass(frozen=True, slots=True)
class Result:
    """What a step gives one request.

    Attributes:
        accepted: draft tokens accepted.
        next_id: the token after the accepted ones; None after a part of a context.
        logprobs: of the accepted tokens and the one after; None unless asked for.
    """

    accepted: int = 0
    next_id: int | None = None
    logprobs: list[TokenLogprobs] | None = None
