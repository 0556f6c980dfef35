"""The project's main job, measured: the same prompts without and with a drafter.

Both ways run on the same engine code and machine in turn, prompt by prompt, so that drift of the
machine's speed falls on both alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dspark import native
from dspark.artifacts import cpu_model
from dspark.core import DEFAULT_RULE, Request, SamplingParams, StepOutput
from dspark.data.bad_rows import BadRows
from dspark.data.prompt_rows import all_prompt_ids
from dspark.data.prompts import Prompt
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.engine.stats import accept_by_position, accepted_length, wasted_tokens
from dspark.evaluation.answers import Answer, answer, answer_with_transformers, difference
from dspark.targets.target import Target

SCHEMA = "dspark.demo/1"
Show = Callable[[str, Prompt, StepOutput], None]


@dataclass(slots=True)
class Ways:
    """Answers of all prompts, by way ("plain", "dspark", "transformers")."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def add(self, answers: dict[str, Answer]) -> None:
        """One prompt's answers."""
        for way, given in answers.items():
            self.answers.setdefault(way, []).append(given)

    def tokens_per_s(self, way: str, only: Sequence[int] | None = None) -> float:
        """Ratio of totals, prefill included, over all prompts or some of them."""
        chosen = self.answers[way]
        chosen = chosen if only is None else [chosen[i] for i in only]
        return sum(len(a.request.output_ids) for a in chosen) / sum(a.seconds for a in chosen)


def run(
    target: Target,
    drafter: Drafter,
    prompts: list[Prompt],
    params: SamplingParams,
    *,
    seconds: float | None = None,
    policy: str | None = None,
    verification: str = DEFAULT_RULE,
    compare: Any = None,
    show: Show = lambda way, prompt, output: None,
    clock: Callable[[], float] = time.monotonic,
    bad_rows: BadRows | None = None,
) -> dict[str, Any]:
    """Answer prompts each way and compare; Ctrl-C keeps those that are answered.

    Args:
        seconds: start no prompt later than this (`within`); None answers them all.
        compare: a Hugging Face module of the same target, to time ``generate`` too.
        show: called with every step's output, off the clock of the answers.
        clock: says how much of ``seconds`` is spent.
        bad_rows: what to do with prompts that cannot be used; None stops at the first.

    Returns:
        The fields of schema dspark.demo/1.

    Raises:
        KeyboardInterrupt: Ctrl-C came before the first prompt was answered.
    """
    usable = all_prompt_ids(target, prompts, bad_rows or BadRows())
    prompts, encoded = [prompt for prompt, _ in usable], [ids for _, ids in usable]
    room = min(max(map(len, encoded)) + params.max_new_tokens, target.max_positions)
    engines = {
        "plain": Engine(target, None, slots=1, max_len=room),
        "dspark": Engine(target, drafter, policy, slots=1, max_len=room, verification=verification),
    }
    _warm_up(engines, encoded[0], params, compare, target)
    answered: list[Prompt] = []
    ways, stats, spent, interrupted = Ways(), engines["dspark"].stats, (0.0, 0.0), False
    try:
        for index in within(prompts, seconds, clock):
            prompt, ids = prompts[index], encoded[index]
            order = list(engines) if len(answered) % 2 == 0 else list(reversed(engines))
            found = {
                way: answer(engines[way], ids, params, partial(show, way, prompt)) for way in order
            }
            if compare is not None:
                found["transformers"] = answer_with_transformers(compare, target, ids, params)
            ways.add(found)
            answered.append(prompt)
            spent = stats.draft_s, stats.verify_s
    except KeyboardInterrupt:
        if not answered:
            raise
        interrupted = True
    time_share = [round(part / _seconds(ways, "dspark"), 4) for part in spent]
    return summary(target, drafter, answered, params, ways) | {
        "machine": machine(target),
        "kernels": kernels(),
        "policy": engines["dspark"].policy.name,
        "seconds": seconds,
        "interrupted": interrupted,
        "time_share": dict(zip(("draft", "verify"), time_share, strict=True)),
    }


def within(
    prompts: Sequence[Prompt], seconds: float | None, clock: Callable[[], float]
) -> Iterator[int]:
    """Places of the prompts to answer: of each, asked for when the one before is answered.

    None starts once ``seconds`` are spent, but for the first of its domain, which may start
    until twice as many are: a table with all domains says more than a punctual one. The very
    first always starts.
    """
    start, domains = clock(), set[str]()
    for index, prompt in enumerate(prompts):
        allowed = math.inf
        if seconds is not None and domains:
            allowed = seconds if prompt.domain in domains else 2 * seconds
        if clock() - start < allowed:
            domains.add(prompt.domain)
            yield index


def machine(target: Target) -> str:
    """Name of the device that the target runs on."""
    if target.device.type == "cuda":
        return torch.cuda.get_device_name(target.device)
    return cpu_model()


def kernels() -> str:
    """Which kernels decode on this processor."""
    return native.current()


def _seconds(ways: Ways, way: str) -> float:
    return sum(a.seconds for a in ways.answers[way])


def _warm_up(
    engines: dict[str, Engine],
    ids: list[int],
    params: SamplingParams,
    compare: Any,
    target: Target,
) -> None:
    """First calls pay for memory and kernel choice; they are not anyone's speed."""
    few = SamplingParams(max_new_tokens=min(16, params.max_new_tokens))
    for engine in engines.values():
        engine.generate([ids], few)
        engine.stats = type(engine.stats)()
    if compare is not None:
        answer_with_transformers(compare, target, ids, few)


def summary(
    target: Target, drafter: Drafter, prompts: list[Prompt], params: SamplingParams, ways: Ways
) -> dict[str, Any]:
    """Figures of schema dspark.demo/1 from the answers."""
    plain = [a.request for a in ways.answers["plain"]]
    drafted = [a.request for a in ways.answers["dspark"]]
    differences = [
        difference(target, prompts[i].id, p, d)
        for i, (p, d) in enumerate(zip(plain, drafted, strict=True))
        if p.output_ids != d.output_ids
    ]
    speeds = {way: ways.tokens_per_s(way) for way in ways.answers}
    result: dict[str, Any] = {
        "target": target.name,
        "drafter": drafter.config.kind,
        "dtype": target.precision,
        "threads": torch.get_num_threads(),
        "temperature": params.temperature,
        "max_new_tokens": params.max_new_tokens,
        "prompts": len(prompts),
        "new_tokens": sum(len(r.output_ids) for r in drafted),
        "plain_tokens_per_s": round(speeds["plain"], 2),
        "dspark_tokens_per_s": round(speeds["dspark"], 2),
        "speedup": round(speeds["dspark"] / speeds["plain"], 4),
        "accepted_length": round(accepted_length(drafted), 4),
        "accept_by_position": [round(a, 4) for a in accept_by_position(drafted)],
        "wasted_tokens": wasted_tokens(drafted),
        "identical_texts": round(1 - len(differences) / len(prompts), 4),
        "first_differences": differences,
        "domains": _by_domain(prompts, ways, drafted),
    }
    if "transformers" in speeds:
        result["transformers_tokens_per_s"] = round(speeds["transformers"], 2)
        result["plain_over_transformers"] = round(speeds["plain"] / speeds["transformers"], 4)
        result["dspark_over_transformers"] = round(speeds["dspark"] / speeds["transformers"], 4)
    return result


def _by_domain(
    prompts: list[Prompt], ways: Ways, drafted: list[Request]
) -> dict[str, dict[str, float]]:
    """Accepted length and speed-up of each domain, and the mean over domains."""
    rows: dict[str, dict[str, float]] = {}
    for domain in dict.fromkeys(p.domain or "all" for p in prompts):
        only = [i for i, p in enumerate(prompts) if (p.domain or "all") == domain]
        speeds = {way: ways.tokens_per_s(way, only) for way in ("plain", "dspark")}
        rows[domain] = {
            "prompts": len(only),
            "accepted_length": round(accepted_length([drafted[i] for i in only]), 4),
            "speedup": round(speeds["dspark"] / speeds["plain"], 4),
        }
    lengths = [row["accepted_length"] for row in rows.values()]
    speedups = [row["speedup"] for row in rows.values()]
    rows["macro"] = {
        "prompts": len(prompts),
        "accepted_length": round(sum(lengths) / len(lengths), 4),
        "speedup": round(sum(speedups) / len(speedups), 4),
    }
    return rows
