"""What the heads cost in a round (the paper's Figure 4, right).

One request at a time decodes with the whole block verified. Rounds take turns with and without the
heads, so drift of the machine's speed falls on all alike; the text is the target's either way. No
text is written twice: transition biases are kept by token (`drafters.transitions`), and a text seen
before would find all of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from time import perf_counter
from typing import Any

import numpy as np

from dspark.core import SamplingParams
from dspark.drafters.drafter import Drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.engine.engine import Engine
from dspark.errors import ConfigError
from dspark.targets.target import Target

SCHEMA = "dspark.head_cost/1"
WAYS = ("both heads", "sequential head", "no head")
ANSWER = 128  # tokens of an answer; the context stays of one size that way


def measure(
    target: Target, drafter: Drafter, prompts: Sequence[Sequence[int]], rounds: int
) -> dict[str, Any]:
    """Mean times of a round and of the heads in it, the slowest and fastest twentieth left out.

    Args:
        prompts: token ids; each is answered once.
        rounds: rounds of each way; fewer when all prompts are answered.

    Returns:
        block_size, markov_head_type, round_ms (with both heads), head_ms (the sequential head),
        confidence_ms, share, which is head_ms over round_ms, and rounds of each way.

    Raises:
        ConfigError: the drafter has no sequential head, or the prompts give no rounds.
    """
    if not isinstance(drafter, DSparkDrafter) or drafter.markov_head is None:
        raise ConfigError("The drafter has no sequential head", found=f"kind {drafter.kind}")
    size = drafter.config.block_size
    room = min(max(map(len, prompts)) + ANSWER, target.max_positions)
    engine = Engine(target, drafter, f"fixed:{size}", slots=1, max_len=room)
    drafts: dict[str, list[float]] = {way: [] for way in WAYS}
    steps: dict[str, list[float]] = {way: [] for way in WAYS}
    for prompt_ids in prompts:
        if min(map(len, steps.values())) < rounds:
            _answer(engine, drafter, prompt_ids, drafts, steps)
    counted = min(map(len, steps.values()))
    if not counted:
        raise ConfigError("The prompts give no rounds", fix="Give more prompts, or longer answers")
    draft_ms = {way: 1e3 * _mean(seconds) for way, seconds in drafts.items()}
    round_ms = 1e3 * _mean(steps["both heads"])
    head_ms = draft_ms["sequential head"] - draft_ms["no head"]
    return {
        "block_size": size,
        "markov_head_type": drafter.config.markov_head_type,
        "round_ms": round(round_ms, 3),
        "head_ms": round(head_ms, 3),
        "confidence_ms": round(draft_ms["both heads"] - draft_ms["sequential head"], 3),
        "share": round(head_ms / round_ms, 4),
        "rounds": counted,
    }


def _answer(
    engine: Engine,
    drafter: DSparkDrafter,
    prompt_ids: Sequence[int],
    drafts: dict[str, list[float]],
    steps: dict[str, list[float]],
) -> None:
    """Answer one prompt, the ways in turn, and note their seconds."""
    request = engine.submit(prompt_ids, SamplingParams(max_new_tokens=ANSWER, ignore_stop=True))
    engine.step()  # the prompt
    for way in islice(cycle(WAYS), ANSWER):
        if request.finish is not None:
            return
        before, start = engine.stats.draft_s, perf_counter()
        with _heads(drafter, way):
            engine.step()
        steps[way].append(perf_counter() - start)
        drafts[way].append(engine.stats.draft_s - before)


def _mean(seconds: Sequence[float]) -> float:
    """Mean without the twentieth at either end: rounds differ, and hiccups are not the heads'."""
    ordered, cut = np.sort(seconds), len(seconds) // 20
    return float(ordered[cut : len(ordered) - cut].mean())


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
