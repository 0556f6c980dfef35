"""What a round's two parts, drafting and verifying, take on this machine (DSpark §3.2.2, §5.2).

An engine's own runner is timed, logits, judging and the drafter's context included, so a table
holds what a step will really take.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, zip_longest
from statistics import median
from typing import TypeVar

import torch

from dspark.core import Batch, DraftBlock, Request, SamplingParams, StepLayout
from dspark.engine.queue import RequestQueue
from dspark.engine.runner import Runner
from dspark.tables.cost import CostKey, CostTable, Points, rising

QUICK_CONTEXT = 128  # positions of each request while measuring quickly, all but the last made up
QUICK_SECONDS = 5.0  # that measuring quickly may take
QUICK_TURNS = 2  # measurements of each size, after one that warms up

T = TypeVar("T")

Pick = Callable[[Sequence[float]], float]


class Stand:
    """Requests that stand before their first round, with made-up prompts, to time rounds with.

    Args:
        runner: whose caches nobody uses meanwhile; `clear` gives their memory back.
        users: most requests; at most the runner's slots.
        context: cache positions of each; with a whole block behind they must fit `max_len`.
        max_len: positions of the runner's caches.
        made_up: let only the last position of each go through the target. The others' keys and
            values are what the fresh caches hold, which takes as long to read.
    """

    def __init__(
        self, runner: Runner, users: int, context: int, max_len: int, made_up: bool = False
    ) -> None:
        self.runner, self.block = runner, runner.draft_len
        self._made_up = context - 1 if made_up else 0
        self._users, self._max_len = users, max_len
        self._words, self._context = random.Random(0), context
        self._queue = RequestQueue(users, max_len, draft_len=self.block)
        self._running: list[Request] = []

    def fill(self, requests: int) -> None:
        """Bring so many requests before their first round."""
        params = SamplingParams(max_new_tokens=self._max_len, ignore_stop=True)
        vocabulary = self.runner.target.spec.vocab_size
        for number in range(len(self._running), requests):
            prompt = [self._words.randrange(vocabulary) for _ in range(self._context)]
            request = Request(number + 1, prompt, params)
            request.cached = self._made_up
            self._queue.submit(request)
        while (batch := self._queue.next_batch()).prefill:
            alone = Batch(batch.prefill, [])  # those that are ready wait for the others
            layout = StepLayout.build(alone, None, ())
            self._queue.commit(layout, self.runner.verify(layout, None))
        self._running = batch.decode

    def draft(self, requests: int, slots: int) -> tuple[DraftBlock | None, float]:
        """Drafts of so many slots for so many requests, and the seconds they took."""
        batch = Batch([], self._running[:requests])
        return self._timed(lambda: self.runner.draft(batch, slots))

    def verify(self, requests: int, drafts: DraftBlock | None, length: int) -> float:
        """Seconds of verifying so many draft tokens of each request.

        Without drafts it is a step that drafts nothing, where the drafter's context may wait.
        """
        batch, lengths = Batch([], self._running[:requests]), [length] * requests
        lay_out = lambda: StepLayout.build(batch, drafts, lengths)  # noqa: E731
        return self._timed(lambda: self.runner.verify(lay_out(), drafts))[1]

    def clear(self) -> None:
        """Give back what the requests held."""
        for slot in range(self._users):
            self.runner.forget(slot)

    def _timed(self, work: Callable[[], T]) -> tuple[T, float]:
        self._finish()
        start = time.perf_counter()
        found = work()
        self._finish()
        return found, time.perf_counter() - start

    def _finish(self) -> None:
        """Wait for what is under way: calls to a GPU return before they are done."""
        if self.runner.target.device.type == "cuda":
            torch.cuda.synchronize(self.runner.target.device)


class Times:
    """Measured seconds of both parts, by size.

    Attributes:
        draft_s: by slots and requests.
        verify_s: by requests and batch tokens.
    """

    def __init__(self) -> None:
        self.draft_s: dict[tuple[int, int], list[float]] = defaultdict(list)
        self.verify_s: dict[tuple[int, int], list[float]] = defaultdict(list)

    def add(self, other: Times) -> None:
        """Add another's measurements."""
        for size, values in other.draft_s.items():
            self.draft_s[size] += values
        for rows, values in other.verify_s.items():
            self.verify_s[rows] += values

    def table(self, key: CostKey, block: int, context: int, pick: Pick = median) -> CostTable:
        """The table they make.

        Args:
            pick: of several measurements of a size. Of smallest times a size takes none above that
                of a larger one: what disturbs a measurement makes it longer, and less work cannot
                take more time.
        """
        drafting = lambda slots: _points(  # noqa: E731
            {size: times for (own, size), times in self.draft_s.items() if own == slots}, pick
        )
        sizes = sorted({slots for slots, _ in self.draft_s} - {block})
        short = tuple((slots, drafting(slots)) for slots in sizes)
        return CostTable(
            key,
            _pooled(self.verify_s, pick),
            drafting(block),
            context,
            block if short else 0,
            short,
            _by_requests(self.verify_s, pick),
        )


def _pooled(verify_s: Mapping[tuple[int, int], Sequence[float]], pick: Pick) -> Points:
    """Times by batch tokens, whosever they are."""
    pooled: dict[int, list[float]] = defaultdict(list)
    for (_, tokens), times in verify_s.items():
        pooled[tokens] += times
    return _points(pooled, pick)


def _by_requests(
    verify_s: Mapping[tuple[int, int], Sequence[float]], pick: Pick
) -> tuple[tuple[int, Points], ...]:
    """Times by requests, then by batch tokens."""
    apart: dict[int, dict[int, Sequence[float]]] = defaultdict(dict)
    for (requests, tokens), times in verify_s.items():
        apart[requests][tokens] = times
    return tuple((requests, _points(sizes, pick)) for requests, sizes in sorted(apart.items()))


def _points(times_by_size: Mapping[int, Sequence[float]], pick: Pick) -> Points:
    sizes = sorted(times_by_size)
    seconds = [pick(times_by_size[size]) for size in sizes]
    if pick is min:
        seconds = list(accumulate(reversed(seconds), min))[::-1]
    return rising(list(zip(sizes, seconds, strict=True)))


# ---- measuring quickly --------------------------------------------------------------------------


def measure_quickly(
    runner: Runner,
    key: CostKey,
    *,
    users: int,
    max_len: int,
    known: CostTable | None = None,
    seconds: float = QUICK_SECONDS,
) -> CostTable | None:
    """A table good enough to begin with: few sizes, few turns, the smallest time of each.

    For one user it takes 10 forwards of the target and 6 drafts, so that even a single answer
    pays for it. The numbers of requests rise, and the next is left out when it would not fit into
    the time, so that the table may end below `users`.

    Args:
        runner: an engine's, before its first request.
        users: most requests to measure with; at most the runner's slots.
        max_len: positions of the runner's caches.
        known: a table that lacks larger numbers of requests; its points are kept.
        seconds: that it may take; one user is measured once however long that takes.

    Returns:
        None where the caches have no room for a block behind a short text.
    """
    block = runner.draft_len
    context = quick_context(max_len, block)
    numbers = [n for n in quick_sizes(users) if known is None or n > known.most_requests]
    if context < 1 or not numbers:
        return known
    slots = [1, block] if known is None else [*(n for n, _ in known.short), block]
    stand, times = Stand(runner, users, context, max_len, made_up=True), Times()
    start = last = time.perf_counter()
    last_s, last_requests = 0.0, 1
    for requests in numbers:
        expected_s = last_s * requests / last_requests
        if times.verify_s and last - start + expected_s > seconds:
            break
        stand.fill(requests)
        spent = False
        for turn in range(1 + QUICK_TURNS):
            if not spent:  # the first warms up, unless there is no time for another
                found = _quick_turn(stand, requests, sorted(set(slots)))
                spent = time.perf_counter() - start > seconds
                if turn or spent:
                    times.add(found)
        now = time.perf_counter()
        last_s, last_requests, last = now - last, requests, now
    stand.clear()
    table = times.table(key, block, context, min)
    return table if known is None else known.joined(table)


def quick_context(max_len: int, block: int) -> int:
    """Positions of each request while measuring quickly, with room for a block behind."""
    return min(QUICK_CONTEXT, max_len - block - 1)


def quick_sizes(users: int) -> list[int]:
    """Numbers of requests that are measured quickly, rising to all."""
    return sorted({n for n in (1, 2, 4, 16) if n < users} | {users})


def _quick_turn(stand: Stand, requests: int, slots: Sequence[int]) -> Times:
    """Every size once; each draft comes behind a forward of the target, which leaves no cache
    warm.
    """
    times, block = Times(), stand.block
    few = 3 if requests == 1 else 2
    # The rows of the plain step wait until the first draft: its time counts in the next one alone.
    times.verify_s[requests, requests].append(stand.verify(requests, None, 0))
    stand.runner.catch_up()
    drafts, seconds = stand.draft(requests, block)
    times.draft_s[block, requests].append(seconds)
    lengths = [block, few] if few < block else [block]
    for length, number in zip_longest(lengths, [n for n in slots if n < block]):
        size = length or block
        seconds = stand.verify(requests, drafts, size)
        times.verify_s[requests, requests * (1 + size)].append(seconds)
        if number:
            times.draft_s[number, requests].append(stand.draft(requests, number)[1])
    return times
