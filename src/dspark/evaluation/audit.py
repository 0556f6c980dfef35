"""Is anything lost? Three checks of a target, drafter and policy on this machine (`dspark audit`).

1. Greedy identity: at temperature 0 the texts with and without drafts are equal, up to places where
   the target's two best logits are closer than rounding in this dtype.
2. Distribution: at temperature 1 every committed token follows the target given the text before it
   (`excess`).
3. Seeds: a request with a seed gives the same text alone and in company.

A check that is stopped before its end says what it has seen, and what it would take to decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dspark.core import DEFAULT_RULE, FinishReason, Request, SamplingParams
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.engine.stats import accepted_length
from dspark.evaluation.answers import difference
from dspark.evaluation.excess import ALPHA, Excess, Watch
from dspark.evaluation.pace import Pace, share
from dspark.targets.target import Target
from dspark.targets.weights import SAME

__all__ = ["SCHEMA", "Excess", "Pace", "Plan", "Watch", "run"]

Pairs = Sequence[tuple[Request, Request]]

SCHEMA = "dspark.audit/1"
# Two best logits closer than this may change places by rounding alone: an absolute gap in float32,
# a share of the best logit in the short types.
EXACT_GAP = 1e-4
ROUNDING = {"float16": 2e-2, "bfloat16": 6e-2}
SEEN_DISTANCE = 0.05  # total variation that a distribution test must be able to see
# Of the time that is left when a check begins, how much it may take.
GREEDY_SHARE, DISTRIBUTION_SHARE = 0.3, 0.7


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to try.

    Attributes:
        prompts: token ids.
        greedy_tokens, sampled_tokens: longest answers of the checks.
        samples: answers to each prompt in the distribution check.
        slots: requests at a time.
    """

    prompts: list[list[int]]
    greedy_tokens: int = 96
    sampled_tokens: int = 64
    samples: int = 8
    slots: int = 8


def run(
    target: Target,
    drafter: Drafter,
    policy: str | None,
    plan: Plan,
    *,
    seed: int = 0,
    verification: str = DEFAULT_RULE,
    pace: Pace | None = None,
) -> dict[str, Any]:
    """All three checks, as far as there is time.

    Args:
        policy: by default whole blocks.
        verification: the rule by which drafts above temperature 0 are accepted.
        pace: how long they may take, and who is told how far they are.

    Returns:
        Fields of schema dspark.audit/1; ``verdict`` is "lossless", "lossy" or "undecided".
    """
    pace = pace or Pace()
    longest = max(map(len, plan.prompts)) + max(plan.greedy_tokens, plan.sampled_tokens)
    room = min(longest + drafter.config.block_size, target.max_positions)
    chosen = policy or f"fixed:{drafter.config.block_size}"
    build = lambda d, s=plan.slots, watch=None: Engine(  # noqa: E731
        target,
        d,
        chosen if d is not None else "off",
        s,
        room,
        seed,
        verification=verification,
        on_verdict=watch,
    )
    drafted = build(drafter)
    pace.begin("greedy text", len(plan.prompts), GREEDY_SHARE)
    greedy = _greedy(target, build(None), drafted, plan, pace)
    pace.begin("distribution", len(plan.prompts) * plan.samples, DISTRIBUTION_SHARE)
    watch = Watch(drafter.d2t)
    distribution = _distribution(build(drafter, watch=watch), watch, plan, pace)
    pace.begin("seeds", len(plan.prompts), 1.0)
    seeds = _seeds(target, build, drafter, plan, seed, pace)
    outcomes = [check["outcome"] for check in (greedy, distribution, seeds)]
    return {
        "target": target.name,
        "drafter": drafter.config.kind,
        "policy": drafted.policy.name,
        "verification": verification,
        "dtype": target.precision,
        "against": _against(target),
        "verdict": "lossy"
        if "failed" in outcomes
        else "undecided"
        if "undecided" in outcomes
        else "lossless",
        "seconds": round(pace.seconds, 1),
        "stopped": pace.stopped_early,
        "greedy": greedy,
        "distribution": distribution,
        "seeds": seeds,
    }


def _against(target: Target) -> str:
    """What the verdict compares drafted decoding with."""
    own = "" if target.weights == SAME else f" with the same {target.weights} weights"
    return f"plain decoding{own}"


def _greedy(
    target: Target, plain: Engine, drafted: Engine, plan: Plan, pace: Pace
) -> dict[str, Any]:
    params = SamplingParams(max_new_tokens=plan.greedy_tokens)
    pairs: list[tuple[Request, Request]] = []
    found: list[Request] = []
    for start in range(0, len(plan.prompts), plan.slots):
        prompts = plan.prompts[start : start + plan.slots]
        expected = [plain.request(prompt, params) for prompt in prompts]
        pace.run(plain, expected, pace.within(0.5), done=start, weight=0.5)
        again = [drafted.request(prompt, params) for prompt in prompts]
        pace.run(drafted, again, done=start + len(prompts) / 2, weight=0.5)
        found += again
        pairs += [pair for pair in zip(expected, again, strict=True) if all(map(_said, pair))]
        if pace.over:
            break
    parted = [
        difference(target, str(i), *pair) for i, pair in enumerate(pairs) if not _alike(*pair)
    ]
    beyond = [d for d in parted if d["logit_gap"] > _excused(target, d["best_logit"])]
    whole = _count_whole(pairs)
    return {
        "check": "greedy",
        "outcome": _outcome(bool(beyond), _drafted(found) and whole == len(plan.prompts)),
        "prompts": len(pairs),
        "planned": len(plan.prompts),
        "identical": round(1 - len(parted) / len(pairs), 4) if pairs else None,
        "largest_gap": max((d["logit_gap"] for d in parted), default=0.0),
        "beyond_rounding": len(beyond),
        "accepted_length": _rounded(accepted_length(found)),
        "needs": _needs_texts(pace, pairs, len(plan.prompts), _drafted(found)),
    }


def _distribution(engine: Engine, watch: Watch, plan: Plan, pace: Pace) -> dict[str, Any]:
    params = SamplingParams(temperature=1.0, max_new_tokens=plan.sampled_tokens)
    requests = [engine.request(prompt, params) for prompt in plan.prompts * plan.samples]
    pace.run(engine, requests)
    total = watch.total
    tests = [total, *watch.slots, *watch.groups]
    tests = [excess for excess in tests if excess.variance]
    # The smallest p-value counts, times their number.
    p_value = min([1.0, *(len(tests) * excess.p_value for excess in tests)])
    unseen = total.distance_seen > SEEN_DISTANCE
    return {
        "check": "distribution",
        "outcome": "failed" if p_value < ALPHA else "undecided" if unseen else "passed",
        "tokens": total.tokens,
        "hits": round(total.hits),
        "due": round(total.due, 2),
        "p_value": p_value,
        "distance_seen": round(total.distance_seen, 5) if total.tokens else None,
        "z_by_slot": [round(slot.z, 3) for slot in watch.slots],
        "verify_lengths": {str(k): n for k, n in sorted(watch.verified.items())},
        "accepted_length": _rounded(accepted_length(requests)),
        "needs": _needs_tokens(pace, total, plan, requests) if unseen else None,
    }


def _seeds(
    target: Target, build: Any, drafter: Drafter, plan: Plan, seed: int, pace: Pace
) -> dict[str, Any]:
    """Each seeded request alone, then all of them among unseeded company."""
    params = SamplingParams(temperature=1.0, max_new_tokens=plan.sampled_tokens)
    single, alone = build(drafter, 1), []
    half = pace.within(0.5)
    for i, prompt in enumerate(plan.prompts):
        request = single.request(prompt, replace(params, seed=seed + i))
        pace.run(single, [request], half, done=i / 2, weight=0.5)
        if not _said(request):
            break
        alone.append(request)
    engine = build(drafter)
    together = [engine.request(request.prompt_ids, request.params) for request in alone]
    company = [engine.request(request.prompt_ids, params) for request in alone]
    mixed = [request for pair in zip(together, company, strict=True) for request in pair]
    pace.run(engine, mixed, done=len(alone) / 2, weight=0.25)
    pairs = [pair for pair in zip(alone, together, strict=True) if all(map(_said, pair))]
    same = sum(_alike(*pair) for pair in pairs)
    whole = _count_whole(pairs)
    exact = target.dtype == torch.float32
    decided = _drafted(alone) and whole == len(plan.prompts)
    return {
        "check": "seeds",
        "outcome": _outcome(exact and same < len(pairs), decided),
        "requests": len(pairs),
        "planned": len(plan.prompts),
        "identical": round(same / len(pairs), 4) if pairs else None,
        "needs": _needs_texts(pace, pairs, len(plan.prompts), _drafted(alone)),
    }


def _said(request: Request) -> bool:
    return bool(request.output_ids)


def _is_whole(request: Request) -> bool:
    return request.finish not in (None, FinishReason.CANCELLED)


def _alike(one: Request, other: Request) -> bool:
    """Whether two texts are equal, as far as both go where one was cut short."""
    a, b = one.output_ids, other.output_ids
    if _is_whole(one) and _is_whole(other):
        return a == b
    length = min(len(a), len(b))
    return a[:length] == b[:length]


def _count_whole(pairs: Pairs) -> int:
    return sum(_is_whole(a) and _is_whole(b) for a, b in pairs)


def _needs_texts(pace: Pace, pairs: Pairs, planned: int, drafted: bool) -> str | None:
    """What a check of whole texts would take to decide; None where it did."""
    done = sum(min(share(a), share(b)) for a, b in pairs)
    if (whole := _count_whole(pairs)) < planned:
        return f"{planned - whole} more whole texts, {pace.estimate(done, planned - done)}"
    return None if drafted else "draft tokens that are verified: another --policy, or longer texts"


def _needs_tokens(pace: Pace, total: Excess, plan: Plan, requests: Sequence[Request]) -> str:
    """What the check of the distribution would take to see a distance of SEEN_DISTANCE."""
    if not total.variance:
        return "draft tokens that are verified"
    needed = math.ceil(total.tokens * (total.distance_seen / SEEN_DISTANCE) ** 2)
    missing = needed - total.tokens
    text = f"about {missing:,d} more tokens, {pace.estimate(total.tokens, missing)}"
    given = sum(len(request.output_ids) for request in requests)
    whole = all(map(_is_whole, requests))
    samples = math.ceil(plan.samples * needed / max(given, 1))
    return f"{text}: --samples {samples}" if whole else text


def _excused(target: Target, best_logit: float) -> float:
    """Largest gap between two best logits that rounding explains."""
    ratio = ROUNDING.get(target.dtype_name)
    return EXACT_GAP if ratio is None else ratio * max(abs(best_logit), 1.0)


def _drafted(requests: Sequence[Request]) -> bool:
    """Some draft token was verified at all."""
    return any(record.verified for request in requests for record in request.rounds)


def _outcome(failed: bool, drafted: bool) -> str:
    return "failed" if failed else "passed" if drafted else "undecided"


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
