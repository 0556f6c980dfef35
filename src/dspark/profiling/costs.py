"""Measure a round's two parts, drafting and verifying, over batch sizes (DSpark §3.2.2, §5.2).

The engine's own runner is timed, logits, judging and the drafter's context included, so the table
holds what a step will really take.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from dspark.artifacts import cache_dir, cpu_model, sha256_file
from dspark.core import Batch, DraftBlock, SamplingParams, VerifyPlan
from dspark.engine.engine import Engine
from dspark.errors import ConfigError
from dspark.models.checkpoint import WEIGHTS
from dspark.models.drafter import Drafter
from dspark.models.target import Target, portable_name
from dspark.tables.cost import CostKey, CostTable, Points, rising

OnRepeat = Callable[[int, int], None]


def cost_key(target: Target, drafter_folder: Path) -> CostKey:
    """What a table measured here and now belongs to."""
    cuda = target.device.type == "cuda"
    return CostKey(
        machine=torch.cuda.get_device_name(target.device) if cuda else cpu_model(),
        threads=torch.get_num_threads(),
        target=portable_name(target.name),
        dtype=target.dtype_name,
        drafter=sha256_file(drafter_folder / WEIGHTS),
    )


def default_path(key: CostKey) -> Path:
    """Where `dspark profile` keeps a table for the other verbs to find."""
    name = f"{key.target}-{key.dtype}-{key.threads}-{key.drafter[:12]}".replace("/", "_")
    return cache_dir() / "cost" / f"{name}.json"


def measure(
    target: Target,
    drafter: Drafter,
    key: CostKey,
    *,
    users: int,
    context: int,
    repeats: int,
    on_repeat: OnRepeat = lambda done, all_: None,
) -> CostTable:
    """Median times over batch tokens and requests, and over requests and slots to draft.

    Sizes take turns inside each repeat, so drift of the machine's speed falls on all alike.

    Args:
        users: most requests in a batch.
        context: cache positions of each request.
        repeats: measurements of each size; the first of all is thrown away.
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
    engine = Engine(target, drafter, f"fixed:{block}", slots=users, max_len=context + block + 1)
    running = _prefilled(engine, users, context)
    draft_s: dict[tuple[int, int], list[float]] = defaultdict(list)
    verify_s: dict[tuple[int, int], list[float]] = defaultdict(list)
    for repeat in range(repeats + 1):
        for requests, lengths in sizes(users, block):
            batch = Batch([], running.decode[:requests])
            for slots in (*short_blocks(block), block):
                drafts, seconds = _draft(engine, replace(batch, draft_len=slots))
                if repeat:
                    draft_s[slots, requests].append(seconds)
            for length in lengths:
                seconds = _verify(engine, batch, drafts if length else None, length)
                if repeat:
                    verify_s[requests, requests * (1 + length)].append(seconds)
        on_repeat(repeat, repeats)
    drafting = lambda slots: rising(  # noqa: E731
        [(size, median(times)) for (own, size), times in draft_s.items() if own == slots]
    )
    short = tuple((slots, drafting(slots)) for slots in short_blocks(block))
    return CostTable(
        key,
        _pooled(verify_s),
        drafting(block),
        context,
        block if short else 0,
        short,
        _by_requests(verify_s),
    )


def _pooled(verify_s: Mapping[tuple[int, int], Sequence[float]]) -> Points:
    """Median times by batch tokens, whosever they are."""
    pooled: dict[int, list[float]] = defaultdict(list)
    for (_, tokens), times in verify_s.items():
        pooled[tokens] += times
    return rising([(tokens, median(times)) for tokens, times in pooled.items()])


def _by_requests(
    verify_s: Mapping[tuple[int, int], Sequence[float]],
) -> tuple[tuple[int, Points], ...]:
    """Median times by requests, then by batch tokens."""
    apart: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for (requests, tokens), times in verify_s.items():
        apart[requests].append((tokens, median(times)))
    return tuple((requests, rising(points)) for requests, points in sorted(apart.items()))


def _draft(engine: Engine, batch: Batch) -> tuple[DraftBlock | None, float]:
    """Drafts and their seconds, behind a forward of the target, which leaves no cache warm.

    The second time counts: kernels may have to be made anew.
    """
    device = engine.target.device
    drafts = engine.runner.draft(batch)
    engine.runner.verify(batch, drafts, VerifyPlan((0,) * len(batch.decode)))
    _finish(device)
    start = time.perf_counter()
    drafts = engine.runner.draft(batch)
    _finish(device)
    return drafts, time.perf_counter() - start


def _verify(engine: Engine, batch: Batch, drafts: DraftBlock | None, length: int) -> float:
    """Seconds of verifying so many draft tokens of each request, measured the second time.

    Without drafts it is a step that drafts nothing, where the drafter's context may wait.
    """
    plan = VerifyPlan((length,) * len(batch.decode))
    engine.runner.verify(batch, drafts, plan)
    _finish(engine.target.device)
    start = time.perf_counter()
    engine.runner.verify(batch, drafts, plan)
    _finish(engine.target.device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    """Wait for what is under way: calls to a GPU return before they are done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def _prefilled(engine: Engine, users: int, context: int) -> Batch:
    """A batch of requests that stand before their first round, with made-up prompts."""
    words = random.Random(0)
    params = SamplingParams(max_new_tokens=engine.max_len, ignore_stop=True)
    vocabulary = engine.target.spec.vocab_size
    for _ in range(users):
        engine.submit([words.randrange(vocabulary) for _ in range(context)], params)
    while True:
        batch = engine.queue.next_batch()
        if not batch.prefill:
            return batch
        alone = Batch(batch.prefill, [])  # those that are ready wait for the others
        plan = VerifyPlan(())
        engine.queue.commit(alone, None, plan, engine.runner.verify(alone, None, plan))
