"""What the heads cost in a round (the paper's Figure 4, right).

One request decodes with the whole block verified. Rounds take turns with and without the heads, so
drift of the machine's speed falls on all alike; the text is the target's either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

from dspark.core import SamplingParams
from dspark.engine.engine import Engine
from dspark.errors import ConfigError
from dspark.models.drafter import Drafter
from dspark.models.dspark import DSparkDrafter
from dspark.models.target import Target

SCHEMA = "dspark.head_cost/1"
WAYS = ("both heads", "sequential head", "no head")
ANSWER = 128  # tokens of an answer; the context stays of one size that way


def measure(
    target: Target, drafter: Drafter, prompt_ids: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Median times of a round and of the heads in it.

    Args:
        rounds: rounds of each way.

    Returns:
        block_size, markov_head_type, round_ms (with both heads), head_ms (the sequential head),
        confidence_ms, and share, which is head_ms over round_ms.

    Raises:
        ConfigError: the drafter has no sequential head.
    """
    if not isinstance(drafter, DSparkDrafter) or drafter.markov_head is None:
        raise ConfigError("The drafter has no sequential head", found=f"kind {drafter.kind}")
    size = drafter.config.block_size
    room = len(prompt_ids) + ANSWER
    engine = Engine(target, drafter, f"fixed:{size}", slots=1, max_len=room)
    drafts: dict[str, list[float]] = {way: [] for way in WAYS}
    steps: dict[str, list[float]] = {way: [] for way in WAYS}
    endless = SamplingParams(max_new_tokens=ANSWER, ignore_stop=True)
    while min(map(len, steps.values())) < rounds:
        request = engine.submit(prompt_ids, endless)
        engine.step()  # the prompt
        for turn in range(rounds * len(WAYS) + len(WAYS)):
            if request.finish is not None:
                break
            way = WAYS[turn % len(WAYS)]
            before, start = engine.stats.draft_s, perf_counter()
            with _heads(drafter, way):
                engine.step()
            if turn >= len(WAYS):  # the first of each way pays for memory
                steps[way].append(perf_counter() - start)
                drafts[way].append(engine.stats.draft_s - before)
        engine.cancel(request)
    draft_ms = {way: 1e3 * median(seconds) for way, seconds in drafts.items()}
    round_ms = 1e3 * median(steps["both heads"])
    head_ms = draft_ms["sequential head"] - draft_ms["no head"]
    return {
        "block_size": size,
        "markov_head_type": drafter.config.markov_head_type,
        "round_ms": round(round_ms, 3),
        "head_ms": round(head_ms, 3),
        "confidence_ms": round(draft_ms["both heads"] - draft_ms["sequential head"], 3),
        "share": round(head_ms / round_ms, 4),
        "rounds": min(map(len, steps.values())),
    }


@contextmanager
def _heads(drafter: DSparkDrafter, way: str) -> Iterator[None]:
    """The drafter with the heads of this way alone."""
    heads = drafter.markov_head, drafter.confidence_head
    try:
        if way != "both heads":
            drafter.confidence_head = None
        if way == "no head":
            drafter.markov_head = None
        yield
    finally:
        drafter.markov_head, drafter.confidence_head = heads
