"""The project's main job, measured: the same prompts without and with a drafter.

Both ways run on the same engine code and machine in turn, prompt by prompt, so that drift of the
machine's speed falls on both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dspark.core import Request, SamplingParams, StepOutput
from dspark.data.prompts import Prompt
from dspark.engine.engine import Engine
from dspark.engine.stats import accept_by_position, accepted_length, wasted_tokens
from dspark.evaluation.answers import Answer, answer, answer_with_transformers, difference
from dspark.models.drafter import Drafter
from dspark.models.target import Target

SCHEMA = "dspark.demo/1"
Show = Callable[[str, Prompt, StepOutput], None]


@dataclass(slots=True)
class Ways:
    """Answers of all prompts, by way ("plain", "dspark", "transformers")."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)

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
    policy: str | None = None,
    compare: Any = None,
    show: Show = lambda way, prompt, output: None,
) -> dict[str, Any]:
    """Answer every prompt each way and compare.

    Args:
        compare: a Hugging Face module of the same target, to time ``generate`` too.
        show: called with every step's output, off the clock.

    Returns:
        The fields of schema dspark.demo/1.
    """
    encoded = [target.encode_messages(p.messages) for p in prompts]
    room = min(max(map(len, encoded)) + params.max_new_tokens, target.max_positions)
    engines = {
        "plain": Engine(target, None, slots=1, max_len=room),
        "dspark": Engine(target, drafter, policy, slots=1, max_len=room),
    }
    ways = Ways({way: [] for way in engines})
    if compare is not None:
        ways.answers["transformers"] = []
    _warm_up(engines, encoded[0], params, compare, target)
    for index, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
        order = list(engines.items())
        for way, engine in order if index % 2 == 0 else reversed(order):
            shown = lambda output, w=way, p=prompt: show(w, p, output)  # noqa: E731
            ways.answers[way].append(answer(engine, ids, params, shown))
        if compare is not None:
            ways.answers["transformers"].append(
                answer_with_transformers(compare, target, ids, params)
            )
    stats = engines["dspark"].stats
    return summary(target, drafter, prompts, params, ways) | {
        "policy": engines["dspark"].policy.name,
        "time_share": {
            "draft": round(stats.draft_s / _seconds(ways, "dspark"), 4),
            "verify": round(stats.verify_s / _seconds(ways, "dspark"), 4),
        },
    }


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
        "dtype": str(target.dtype).removeprefix("torch."),
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
