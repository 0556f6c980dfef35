"""The drafter's context of all requests, brought up to their texts when a draft needs it.

Suffixes: T packed rows, M taps x D, R requests.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dspark.core import Batch, Verdict, VerifyPlan
from dspark.models.drafter import Drafter
from dspark.models.kv_cache import Rows

# Rows that may wait; beyond them waiting holds memory and saves nothing more.
MOST_WAITING = 1024


class _Part(NamedTuple):
    """Committed rows of one step, as `Drafter.extend` takes them."""

    taps_TM: Tensor
    slots_T: Tensor
    positions_T: Tensor
    next_ids_T: Tensor | None


class DraftContext:
    """What the drafter knows of each request's text.

    Steps without a draft only set their rows aside: taking in the rows of many steps at once costs
    little more than those of one. Rows never wait past a step with prompts, so no slot has changed
    hands meanwhile.

    Args:
        drafter: whose context it is.
        slots, max_len: sizes of its cache.

    Attributes:
        waiting: rows set aside.
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
            drafted: whether it had a draft.
        """
        known = _committed_rows(batch, plan, verdict)
        reads_next = self.drafter.reads_next_ids
        part = _Part(
            pick(seen_TM, known),
            pick(rows.slots_T, known),
            pick(rows.positions_T, known),
            _next_ids(batch, rows, known, verdict) if reads_next else None,
        )
        if drafted or batch.prefill:
            self.catch_up()
            self.drafter.extend(self.cache, *part)
            return
        self._waiting.append(part)
        self.waiting += len(known)
        if self.waiting > MOST_WAITING:
            self.catch_up()

    def catch_up(self) -> None:
        """Take in the rows that were set aside."""
        parts, self._waiting, self.waiting = self._waiting, [], 0
        if len(parts) == 1:
            self.drafter.extend(self.cache, *parts[0])
        elif parts:
            # Rows of one request belong together, in order.
            order = torch.cat([part.slots_T for part in parts]).argsort(stable=True)
            taps, slots, positions, next_ids = zip(*parts, strict=True)
            self.drafter.extend(
                self.cache,
                torch.cat(taps)[order],
                torch.cat(slots)[order],
                torch.cat(positions)[order],
                torch.cat(next_ids)[order] if self.drafter.reads_next_ids else None,
            )

    def forget(self, slot: int) -> None:
        """Give the memory of a slot's rows back to the system, where the cache can."""
        self.catch_up()
        self.drafter.forget(self.cache, slot)


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
