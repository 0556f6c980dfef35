"""Is anything lost? Three checks of a target, drafter and policy on this machine (`dspark audit`).

1. Greedy identity: at temperature 0 the texts with and without drafts are equal, up to places where
   the target's two best logits are closer than rounding in this dtype.
2. Distribution: at temperature 1 every committed token follows the target given the text before it.
   Tokens are judged by whether they fall among those that the drafter overrates, S = {p_d > p_t},
   where broken acceptance shows, and by fixed groups of the vocabulary, where a policy that favours
   some tokens shows. The excess over P_t(S) is a martingale, so its sum over its standard
   deviation is a normal deviate.
3. Seeds: a request with a seed gives the same text alone and in company.

Suffixes: R requests, K block slots, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dspark.core import DraftBlock, Request, SamplingParams, Verdict
from dspark.engine.engine import Engine
from dspark.engine.stats import accepted_length
from dspark.evaluation.answers import difference
from dspark.models.drafter import Drafter
from dspark.models.target import Target
from dspark.models.weights import SAME

SCHEMA = "dspark.audit/1"
# Two best logits closer than this may change places by rounding alone: an absolute gap in float32,
# a share of the best logit in the short types.
EXACT_GAP = 1e-4
ROUNDING = {"float16": 2e-2, "bfloat16": 6e-2}
ALPHA, POWER = 1e-4, 0.95
GROUPS = 16  # of the vocabulary
SEEN_DISTANCE = 0.05  # total variation that a distribution test must be able to see


@dataclass(slots=True)
class Excess:
    """How often committed tokens fell among the overrated ones, against what was due.

    Attributes:
        tokens: committed tokens judged.
        hits: those in S.
        due: Σ P_t(S).
        variance: Σ P_t(S) (1 - P_t(S)).
    """

    tokens: int = 0
    hits: float = 0.0
    due: float = 0.0
    variance: float = 0.0

    def add(self, hit_N: Tensor, mass_N: Tensor) -> None:
        """Count tokens: whether each fell in S, and P_t(S) at its place."""
        mass_N = mass_N.double().clamp(0, 1)
        self.tokens += len(hit_N)
        self.hits += float(hit_N.double().sum())
        self.due += float(mass_N.sum())
        self.variance += float((mass_N * (1 - mass_N)).sum())

    @property
    def z(self) -> float:
        """Normal deviate of the excess; 0 when nothing could vary."""
        return (self.hits - self.due) / math.sqrt(self.variance) if self.variance else 0.0

    @property
    def p_value(self) -> float:
        """Two-sided."""
        return math.erfc(abs(self.z) / math.sqrt(2))

    @property
    def distance_seen(self) -> float:
        """Smallest mean total variation towards the drafter that would have been noticed.

        With probability POWER at level ALPHA; infinite without tokens.
        """
        if not self.tokens:
            return math.inf
        normal = torch.distributions.Normal(0.0, 1.0)
        deviates = normal.icdf(torch.tensor([1 - ALPHA / 2, POWER])).sum()
        return float(deviates) * math.sqrt(self.variance) / self.tokens


@dataclass(slots=True)
class Watch:
    """Sits at an engine's verdicts and fills `Excess`, slot by slot.

    Attributes:
        slots: one `Excess` of the overrated tokens for each block slot.
        groups: one `Excess` for each fixed group of the vocabulary.
        verified: rounds by verify length.
    """

    d2t: Tensor | None
    slots: list[Excess] = field(default_factory=list)
    groups: list[Excess] = field(default_factory=lambda: [Excess() for _ in range(GROUPS)])
    verified: dict[int, int] = field(default_factory=dict)

    def __call__(
        self,
        requests: Sequence[Request],
        target_RKV: Tensor,
        drafts: DraftBlock,
        verify_len: Sequence[int],
        verdict: Verdict,
    ) -> None:
        """One step's verdict; rows of ``target_RKV`` beyond a request's verify length are void."""
        assert drafts.draft_probs_RKV is not None
        ids = drafts.draft_ids_RK.tolist()
        depth = drafts.draft_ids_RK.shape[1]
        while len(self.slots) < depth:
            self.slots.append(Excess())
        for length in verify_len:
            self.verified[length] = self.verified.get(length, 0) + 1
        for k in range(depth):
            # Slot k speaks of a committed token where all drafts before it stand.
            rows = [r for r in range(len(requests)) if verdict.accepted[r] >= k]
            rows = [r for r in rows if k <= verify_len[r]]
            if not rows:
                break
            said = [ids[r][k] if verdict.accepted[r] > k else verdict.next_id[r] for r in rows]
            p_t = target_RKV[rows, k].float()
            p_d = self._wide(drafts.draft_probs_RKV[rows, k], p_t)
            overrated = p_d > p_t
            said_N = torch.tensor(said, device=p_t.device)
            hit = overrated.gather(1, said_N[:, None])[:, 0]
            self.slots[k].add(hit, torch.where(overrated, p_t, 0.0).sum(1))
            # Knuth's multiplicative hash: neighbours in the vocabulary fall into other groups.
            group_V = torch.arange(p_t.shape[1], device=p_t.device) * 2654435761 // 2**16 % GROUPS
            mass_NG = p_t.new_zeros(len(rows), GROUPS).index_add_(1, group_V, p_t)
            for g, excess in enumerate(self.groups):
                excess.add(group_V[said_N] == g, mass_NG[:, g])

    def _wide(self, draft: Tensor, like: Tensor) -> Tensor:
        if self.d2t is None:
            return draft.float()
        wide = torch.zeros_like(like)
        wide[:, self.d2t] = draft.float()
        return wide

    @property
    def total(self) -> Excess:
        """All slots together."""
        parts = self.slots
        return Excess(
            sum(p.tokens for p in parts),
            sum(p.hits for p in parts),
            sum(p.due for p in parts),
            sum(p.variance for p in parts),
        )


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


OnDone = Callable[[str], None]


def run(
    target: Target,
    drafter: Drafter,
    policy: str | None,
    plan: Plan,
    *,
    seed: int = 0,
    on_done: OnDone = lambda check: None,
) -> dict[str, Any]:
    """All three checks.

    Args:
        policy: by default whole blocks.

    Returns:
        Fields of schema dspark.audit/1; ``verdict`` is "lossless", "lossy" or "undecided".
    """
    longest = max(map(len, plan.prompts)) + max(plan.greedy_tokens, plan.sampled_tokens)
    room = min(longest + drafter.config.block_size, target.max_positions)
    chosen = policy or f"fixed:{drafter.config.block_size}"
    build = lambda d, s=plan.slots: Engine(  # noqa: E731
        target, d, chosen if d is not None else "off", s, room, seed
    )
    greedy = _greedy(target, build(None), build(drafter), plan)
    on_done("greedy")
    distribution = _distribution(build(drafter), plan)
    on_done("distribution")
    seeds = _seeds(target, build, drafter, plan, seed)
    on_done("seeds")
    failed = [c["check"] for c in (greedy, distribution, seeds) if c["outcome"] == "failed"]
    unsure = [c["check"] for c in (greedy, distribution, seeds) if c["outcome"] == "undecided"]
    return {
        "target": target.name,
        "drafter": drafter.config.kind,
        "policy": build(drafter).policy.name,
        "dtype": target.precision,
        "against": _against(target),
        "verdict": "lossy" if failed else "undecided" if unsure else "lossless",
        "greedy": greedy,
        "distribution": distribution,
        "seeds": seeds,
    }


def _against(target: Target) -> str:
    """What the verdict compares drafted decoding with."""
    own = "" if target.weights == SAME else f" with the same {target.weights} weights"
    return f"plain decoding{own}"


def _greedy(target: Target, plain: Engine, drafted: Engine, plan: Plan) -> dict[str, Any]:
    params = SamplingParams(max_new_tokens=plan.greedy_tokens)
    expected = plain.generate(plan.prompts, params)
    found = drafted.generate(plan.prompts, params)
    pairs = zip(expected, found, strict=True)
    parted = [
        difference(target, str(i), a, b)
        for i, (a, b) in enumerate(pairs)
        if a.output_ids != b.output_ids
    ]
    beyond = [d for d in parted if d["logit_gap"] > _excused(target, d["best_logit"])]
    return {
        "check": "greedy",
        "outcome": _outcome(bool(beyond), _drafted(found)),
        "prompts": len(plan.prompts),
        "identical": round(1 - len(parted) / len(plan.prompts), 4),
        "largest_gap": max((d["logit_gap"] for d in parted), default=0.0),
        "beyond_rounding": len(beyond),
        "accepted_length": _rounded(accepted_length(found)),
    }


def _distribution(engine: Engine, plan: Plan) -> dict[str, Any]:
    watch = Watch(engine.runner.drafter.d2t if engine.runner.drafter is not None else None)
    engine.runner.on_verdict = watch
    params = SamplingParams(temperature=1.0, max_new_tokens=plan.sampled_tokens)
    requests = engine.generate(plan.prompts * plan.samples, params)
    engine.runner.on_verdict = None
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
    }


def _seeds(target: Target, build: Any, drafter: Drafter, plan: Plan, seed: int) -> dict[str, Any]:
    """Each seeded request alone, then all of them among unseeded company."""
    params = SamplingParams(temperature=1.0, max_new_tokens=plan.sampled_tokens)
    seeded = [replace(params, seed=seed + i) for i in range(len(plan.prompts))]
    alone = []
    for prompt, own in zip(plan.prompts, seeded, strict=True):
        alone += build(drafter, 1).generate([prompt], own)
    engine = build(drafter)
    together = []
    for prompt, own in zip(plan.prompts, seeded, strict=True):
        together.append(engine.submit(prompt, own))
        engine.submit(prompt, params)
    while engine.step():
        pass
    pairs = zip(alone, together, strict=True)
    same = sum(a.output_ids == b.output_ids for a, b in pairs)
    exact = target.dtype == torch.float32
    return {
        "check": "seeds",
        "outcome": _outcome(exact and same < len(alone), _drafted(alone)),
        "requests": len(alone),
        "identical": round(same / len(alone), 4),
    }


def _excused(target: Target, best_logit: float) -> float:
    """Largest gap between two best logits that rounding explains."""
    share = ROUNDING.get(target.dtype_name)
    return EXACT_GAP if share is None else share * max(abs(best_logit), 1.0)


def _drafted(requests: Sequence[Request]) -> bool:
    """Some draft token was verified at all."""
    return any(record.verified for request in requests for record in request.rounds)


def _outcome(failed: bool, drafted: bool) -> str:
    return "failed" if failed else "passed" if drafted else "undecided"


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
