"""The drafter's context of all requests, brought up to their texts when a draft needs it.

Suffixes: T packed rows, M taps x D, R requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor

from dspark.attention.kv_cache import Rows
from dspark.core import Result, Role, Span, StepLayout
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
        self, seen_TM: Tensor, rows: Rows, layout: StepLayout, results: Sequence[Result]
    ) -> None:
        """Take in the rows of a step whose tokens stay in the texts: prompts, anchors, accepted
        draft tokens.

        What a stop token or a length limit cuts afterwards belongs to a finished request and does
        no harm.

        Args:
            seen_TM: what the drafter sees of all rows of the step.
        """
        pairs = list(zip(layout.spans, results, strict=True))
        kept = [span.kept(result.accepted) for span, result in pairs]
        known, ends = list(chain.from_iterable(kept)), list(accumulate(map(len, kept)))
        firsts = [end - len(own) for end, own in zip(ends, kept, strict=True)]
        reads_next = self.drafter.reads_next_ids
        part = _Part(
            pick(seen_TM, known),
            pick(rows.slots_T, known),
            pick(rows.positions_T, known),
            _next_ids(pick(rows.ids_T, known), ends, pairs) if reads_next else None,
            dict(zip((s.slot for s in layout.spans), zip(firsts, ends, strict=True), strict=True)),
        )
        self._waiting.append(part)
        self.waiting += len(known)
        drafted = [span.slot for span in layout.of(Role.DRAFTED)]
        if drafted:  # their next draft comes soon
            self.catch_up(drafted)
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


def _next_ids(ids_T: Tensor, ends: Sequence[int], pairs: Sequence[tuple[Span, Result]]) -> Tensor:
    """The token after each committed row: the row behind it, the known one, or the new one."""
    next_T = ids_T.roll(-1)
    after = [s.next_id if result.next_id is None else result.next_id for s, result in pairs]
    next_T[torch.tensor(ends, device=next_T.device) - 1] = torch.tensor(after, device=next_T.device)
    return next_T


def pick(x_TD: Tensor, rows: list[int]) -> Tensor:
    """Some rows, given in rising order; without a copy where they are neighbours."""
    if not rows or rows[-1] - rows[0] == len(rows) - 1:
        return x_TD[rows[0] : rows[-1] + 1] if rows else x_TD[:0]
    return x_TD[torch.tensor(rows, device=x_TD.device)]
