"""The rows of a step: made once, and indexed by everything that handles logits or tokens.

One target forward takes the rows of all requests behind each other: parts of contexts, then
requests that are not drafted, then drafted ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from dspark.core.requests import Request
from dspark.core.rounds import Batch, DraftBlock


class Role(Enum):
    """What a request does in a step."""

    CONTEXT = "a part of its context; no token follows yet"
    FIRST = "the last part of its prompt; the first token follows"
    PLAIN = "its anchor alone"
    DRAFTED = "its anchor, and draft tokens to verify"


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of one request in a step.

    Attributes:
        ids: token ids of the rows, text positions from `start` on.
        rows: among all rows of the step.
        logits: among the rows that get logits; empty for a part of a context.
        next_id: the known token behind the rows; None where the step gives it, if any.
        drafted: draft tokens that were made, verified or not.
        confidence: c_k of these, if the drafter gives them.
    """

    request: Request
    role: Role
    ids: list[int]
    start: int
    rows: range
    logits: range
    next_id: int | None = None
    drafted: int = 0
    confidence: tuple[float, ...] = ()

    @property
    def slot(self) -> int:
        """Cache slot of the request."""
        assert self.request.slot is not None
        return self.request.slot

    @property
    def verified(self) -> int:
        """Verify length."""
        return len(self.ids) - 1 if self.role is Role.DRAFTED else 0

    @property
    def draft_ids(self) -> list[int]:
        """Draft tokens to verify."""
        return self.ids[1:] if self.role is Role.DRAFTED else []

    def kept(self, accepted: int) -> range:
        """Rows whose tokens stay in the text: context, anchor, accepted draft tokens."""
        return self.rows[: accepted + 1] if self.role is Role.DRAFTED else self.rows


@dataclass(frozen=True, slots=True)
class StepLayout:
    """All rows of a step.

    Attributes:
        spans: of each request, in the order of the rows.
        logit_rows: the rows that get logits, in rising order.
    """

    spans: tuple[Span, ...]
    logit_rows: list[int]

    @classmethod
    def build(
        cls, batch: Batch, drafts: DraftBlock | None, verify_len: Sequence[int]
    ) -> StepLayout:
        """Lay out a batch.

        Args:
            drafts: of the decode requests; without any these are plain.
            verify_len: draft tokens of each of them to verify.
        """
        spans: list[Span] = []
        logit_rows: list[int] = []
        row = 0
        for request, role, ids, start, wanted, next_id, drafted, sure in _parts(
            batch, drafts, verify_len
        ):
            rows = range(row, row + len(ids))
            logits = range(len(logit_rows), len(logit_rows) + wanted)
            spans.append(
                Span(request, role, ids, start, rows, logits, next_id, drafted, tuple(sure))
            )
            logit_rows.extend(rows[len(ids) - wanted :])
            row = rows.stop
        return cls(tuple(spans), logit_rows)

    @property
    def rows(self) -> int:
        """B: rows of the target forward."""
        return self.spans[-1].rows.stop if self.spans else 0

    def of(self, *roles: Role) -> list[Span]:
        """The spans with these roles."""
        return [span for span in self.spans if span.role in roles]


def logits_of(spans: Sequence[Span]) -> slice:
    """The rows with logits of neighbouring spans."""
    return slice(spans[0].logits.start, spans[-1].logits.stop) if spans else slice(0)


def requests_of(spans: Iterable[Span]) -> list[Request]:
    """Whose rows they are."""
    return [span.request for span in spans]


# Request, role, ids, start, rows with logits, known next token, draft tokens, confidences.
_Part = tuple[Request, Role, list[int], int, int, int | None, int, Sequence[float]]


def _parts(batch: Batch, drafts: DraftBlock | None, verify_len: Sequence[int]) -> Iterator[_Part]:
    for chunk in batch.prefill:
        request, ids = chunk.request, chunk.ids()
        if chunk.starts_answer:
            yield request, Role.FIRST, ids, chunk.start, 1, None, 0, ()
        else:
            yield request, Role.CONTEXT, ids, chunk.start, 0, chunk.next_id(), 0, ()
    for request in (*batch.plain, *(batch.decode if drafts is None else ())):
        yield request, Role.PLAIN, [request.anchor], request.anchor_pos, 1, None, 0, ()
    if drafts is None:
        return
    ids_RK, given_RK = drafts.draft_ids_RK.tolist(), drafts.confidence_RK
    sure_RK = [()] * len(ids_RK) if given_RK is None else given_RK.tolist()
    for request, ids_K, sure_K, length in zip(
        batch.decode, ids_RK, sure_RK, verify_len, strict=True
    ):
        ids = [request.anchor, *ids_K[:length]]
        yield request, Role.DRAFTED, ids, request.anchor_pos, 1 + length, None, len(ids_K), sure_K
