"""Measure a round's two parts, drafting and verifying, over batch sizes (DSpark §3.2.2, §5.2).

The engine's own runner is timed, logits, judging and the drafter's context included, so the table
holds what a step will really take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from dspark.core import DraftBlock
from dspark.drafters.drafter import Drafter
from dspark.engine.measuring import Stand, Times
from dspark.engine.runner import Runner
from dspark.errors import ConfigError
from dspark.tables.cost import CostKey, CostTable
from dspark.targets.target import Target

OnRepeat = Callable[[int, int], None]


def measure(
    target: Target,
    drafter: Drafter,
    key: CostKey,
    *,
    users: int,
    context: int,
    repeats: int,
    seconds: float | None = None,
    on_repeat: OnRepeat = lambda done, all_: None,
) -> CostTable:
    """Median times over batch tokens and requests, and over requests and slots to draft.

    Sizes take turns inside each repeat, so drift of the machine's speed falls on all alike.

    Args:
        users: most requests in a batch.
        context: cache positions of each request.
        repeats: measurements of each size; the first of all is thrown away.
        seconds: that it may take, at least one size excepted: where they are spent it ends with
            fewer repeats, or during the first with fewer users. None takes what it takes.
        on_repeat: told how many repeats are done, of how many.

    Raises:
        ConfigError: the context does not fit the target.
    """
    block = drafter.config.block_size
    if context + block + 1 > target.max_positions:
        raise ConfigError(
            "The context is too long for the target",
            found=f"{context} positions and a block of {block}, context {target.max_positions}",
            fix="Lower --context",
        )
    room = context + block + 1
    stand = Stand(Runner(target, drafter, users, room, block), users, context, room)
    end = None if seconds is None else time.perf_counter() + seconds
    first = _repeat(stand, list(sizes(users, block)), Times(), end)
    numbers = {requests for requests, _ in first.verify_s}
    chosen = [(n, lengths) for n, lengths in sizes(users, block) if n in numbers]
    on_repeat(0, repeats)
    times = Times()
    for repeat in range(1, repeats + 1):
        if end is not None and time.perf_counter() >= end:
            break
        times = _repeat(stand, chosen, times, end)
        on_repeat(repeat, repeats)
    for size, values in first.draft_s.items():  # those that no repeat came to
        times.draft_s[size] = times.draft_s[size] or values
    for size, values in first.verify_s.items():
        times.verify_s[size] = times.verify_s[size] or values
    return times.table(key, block, context)


def _repeat(
    stand: Stand, chosen: Sequence[tuple[int, Sequence[int]]], times: Times, end: float | None
) -> Times:
    """One measurement of each size, added to `times`; of one at least, and then until `end`."""
    slots = (*short_blocks(stand.block), stand.block)
    for index, (requests, lengths) in enumerate(chosen):
        if index and end is not None and time.perf_counter() >= end:
            break
        stand.fill(requests)
        for number in slots:
            drafts, seconds = _draft(stand, requests, number)
            times.draft_s[number, requests].append(seconds)
        for length in lengths:
            present = drafts if length else None
            stand.verify(requests, present, length)
            seconds = stand.verify(requests, present, length)  # kernels may have to be made anew
            times.verify_s[requests, requests * (1 + length)].append(seconds)
    return times


def _draft(stand: Stand, requests: int, slots: int) -> tuple[DraftBlock | None, float]:
    """Drafts and their seconds, behind a forward of the target, which leaves no cache warm.

    The second time counts: kernels may have to be made anew.
    """
    drafts, _ = stand.draft(requests, slots)
    stand.verify(requests, drafts, 0)
    return stand.draft(requests, slots)


def short_blocks(block_size: int) -> tuple[int, ...]:
    """Slots to time drafting with, beside whole blocks; times between follow from them."""
    return tuple(slots for slots in sorted({1, 2, block_size // 2 + 1}) if slots < block_size)


def sizes(users: int, block_size: int) -> Iterator[tuple[int, Sequence[int]]]:
    """Requests and the verify lengths to time them with: all for one, fewer for many."""
    requests = 1
    few = sorted({min(length, block_size) for length in (0, 1, 2, block_size // 2, block_size)})
    while requests < users:
        yield requests, range(block_size + 1) if requests <= 2 else few
        requests *= 2
    yield users, range(block_size + 1) if users <= 2 else few
