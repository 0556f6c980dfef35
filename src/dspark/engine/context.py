"""The drafter's context of all requests, brought up to their texts when a draft needs it.

Suffixes: T packed rows, M taps x D, R requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dspark.attention.kv_cache import Rows
from dspark.core import Batch, Verdict, VerifyPlan
from dspark.drafters.drafter import Drafter

# Rows that may wait, of all requests, so that the memory they hold is bounded. Beyond them the
# oldest are taken in, some at a time: one after the other would cost as much as never to wait, and
# all at once would hold up a step.
MOST_WAITING, AT_A_TIME = 4096, 256


@dataclass(slots=True)
class _Part:
    """Committed rows of one step, as `Drafter.extend` takes them.

    Attributes:
        spans: by cache slot, the rows of each request that still waits: first, and after the last.
    """

    taps_TM: Tensor
    slots_T: Tensor
    positions_T: Tensor
    next_ids_T: Tensor | None
    spans: dict[int, tuple[int, int]]


class DraftContext:
    """What the drafter knows of each request's text.

    Rows of requests without a draft are only set aside: taking in the rows of many steps at once
    costs little more than those of one, and those of a request that ends without a draft are
    never taken in.

    Args:
        drafter: whose context it is.
        slots, max_len: sizes of its cache.

    Attributes:
        waiting: rows that are held.
    """

    def __init__(self, drafter: Drafter, slots: int, max_len: int) -> None:
        self.drafter = drafter
        self.cache = drafter.new_cache(slots, max_len)
        self._waiting: list[_Part] = []
        self.waiting = 0

    def take(
        self,
        seen_TM: Tensor,
        rows: Rows,
        batch: Batch,
        plan: VerifyPlan,
        verdict: Verdict,
        drafted: bool,
    ) -> None:
        """Take in the rows of a step whose tokens stand.

        Args:
            seen_TM: what the drafter sees of all rows of the step.
            drafted: whether its decode requests had a draft; the next one needs them soon.
        """
        known = _committed_rows(batch, plan, verdict)
        reads_next = self.drafter.reads_next_ids
        part = _Part(
            pick(seen_TM, known),
            pick(rows.slots_T, known),
            pick(rows.positions_T, known),
            _next_ids(batch, rows, known, verdict) if reads_next else None,
            _spans(batch, verdict),
        )
        self._waiting.append(part)
        self.waiting += len(known)
        if drafted:
            self.catch_up([request.slot for request in batch.decode if request.slot is not None])
        if self.waiting > MOST_WAITING:
            self._take_in(self._oldest())

    def catch_up(self, slots: Iterable[int] | None = None) -> int:
        """Take in the rows of some requests that were set aside; returns how many.

        Args:
            slots: of these requests; of all by default.
        """
        return self._take_in(self._waiting, slots) if self._waiting else 0

    def drop(self, slot: int) -> None:
        """Set nothing aside any more for a request that leaves its slot."""
        for part in self._waiting:
            part.spans.pop(slot, None)
        self._let_go()

    def forget(self, slot: int) -> None:
        """Give the memory of a slot's rows back to the system, where the cache can."""
        self.drop(slot)
        self.drafter.forget(self.cache, slot)

    def _oldest(self) -> list[_Part]:
        """As many parts as must go."""
        left, parts = self.waiting, []
        for part in self._waiting:
            if left <= MOST_WAITING - AT_A_TIME or left <= 0:
                break
            parts.append(part)
            left -= len(part.slots_T)
        return parts

    def _take_in(self, parts: Sequence[_Part], slots: Iterable[int] | None = None) -> int:
        """Rows of these requests in these parts, each request's together and in order."""
        if slots is None:
            slots = sorted({slot for part in parts for slot in part.spans})
        pieces = [
            (part, *part.spans.pop(slot)) for slot in slots for part in parts if slot in part.spans
        ]
        self._let_go()
        if not pieces:
            return 0
        next_ids_T = None
        if self.drafter.reads_next_ids:
            next_ids_T = _joined(pieces, lambda part: part.next_ids_T)
        slots_T = _joined(pieces, lambda part: part.slots_T)
        self.drafter.extend(
            self.cache,
            _joined(pieces, lambda part: part.taps_TM),
            slots_T,
            _joined(pieces, lambda part: part.positions_T),
            next_ids_T,
        )
        return len(slots_T)

    def _let_go(self) -> None:
        """Hold no part that nobody waits for."""
        self._waiting = [part for part in self._waiting if part.spans]
        self.waiting = sum(len(part.slots_T) for part in self._waiting)


def _joined(
    pieces: Sequence[tuple[_Part, int, int]], of: Callable[[_Part], Tensor | None]
) -> Tensor:
    """Rows of several parts behind each other; without a copy where they are neighbours."""
    found = [(of(part), first, stop) for part, first, stop in pieces]
    if all(a[0] is b[0] and a[2] == b[1] for a, b in pairwise(found)):
        whole = found[0][0]
        assert whole is not None
        return whole[found[0][1] : found[-1][2]]
    return torch.cat([tensor[first:stop] for tensor, first, stop in found if tensor is not None])


def _spans(batch: Batch, verdict: Verdict) -> dict[int, tuple[int, int]]:
    """The committed rows of each request, by its slot."""
    counts = [(chunk.request, chunk.rows) for chunk in batch.prefill]
    counts += [(request, 1) for request in batch.plain]
    accepted = zip(batch.decode, verdict.accepted, strict=True)
    counts += [(request, 1 + stands) for request, stands in accepted]
    spans, start = {}, 0
    for request, rows in counts:
        assert request.slot is not None
        spans[request.slot] = (start, start + rows)
        start += rows
    return spans


def _committed_rows(batch: Batch, plan: VerifyPlan, verdict: Verdict) -> list[int]:
    """Rows whose tokens stand: all prompts, anchors, accepted drafts.

    What a stop token or a length limit cuts afterwards belongs to a finished request and does no
    harm.
    """
    start = batch.other_rows
    rows = list(range(start))
    for length, accepted in zip(plan.verify_len, verdict.accepted, strict=True):
        rows.extend(range(start, start + accepted + 1))
        start += length + 1
    return rows


def _next_ids(batch: Batch, rows: Rows, known: list[int], verdict: Verdict) -> Tensor:
    """The token after each committed row: the row behind it, or the one the verdict drew."""
    next_T = pick(rows.ids_T, known).roll(-1)
    counts = [chunk.rows for chunk in batch.prefill] + [1] * len(batch.plain)
    counts += [accepted + 1 for accepted in verdict.accepted]
    last_R = torch.tensor(counts, device=next_T.device).cumsum(0) - 1
    firsts = iter(verdict.first_id)
    after = [next(firsts) if c.starts_answer else c.next_id() for c in batch.prefill]
    drawn = [*after, *verdict.plain_id, *verdict.next_id]
    next_T[last_R] = torch.tensor(drawn, device=next_T.device)
    return next_T


def pick(x_TD: Tensor, rows: list[int]) -> Tensor:
    """Some rows, given in rising order; without a copy where they are neighbours."""
    if not rows or rows[-1] - rows[0] == len(rows) - 1:
        return x_TD[rows[0] : rows[-1] + 1] if rows else x_TD[:0]
    return x_TD[torch.tensor(rows, device=x_TD.device)]
