"""The audit: passes what is lossless, catches what is not, and says when it cannot tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from dspark.core import BLOCK, TOKEN, DraftDecision
from dspark.drafters.drafter import Drafter
from dspark.engine import judging
from dspark.engine.policies import Policy
from dspark.evaluation import audit, pace
from dspark.maths import admission, block_verification, verification
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder
from scripted import TableTarget, random_drafter

PLAN = audit.Plan([[3, 1], [2], [0, 6, 4]], 12, 12, samples=150, slots=32)


@pytest.fixture(scope="module")
def table() -> Target:
    return TableTarget()


@pytest.fixture(scope="module")
def drafter(table: Target) -> Drafter:
    drafter: Any = random_drafter(table, 4, gain=20.0, seed=1)
    weight = drafter.confidence_head.proj.weight
    weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * 3
    drafter.confidence_head.proj.bias.data.fill_(-5.5)  # from 0.1 to 0.98, by the token before
    return drafter


def found(
    table: Target, drafter: Drafter, policy: Any = None, plan: Any = PLAN, rule: str = BLOCK
) -> dict[str, Any]:
    return audit.run(table, drafter, policy, plan, verification=rule)


@pytest.mark.parametrize(
    ("policy", "rule"),
    [(None, BLOCK), ("fixed:2", BLOCK), ("threshold:0.5", BLOCK), (None, TOKEN)],
)
def test_lossless_setups_pass(table: Target, drafter: Drafter, policy: Any, rule: str) -> None:
    result = found(table, drafter, policy, rule=rule)
    assert result["verification"] == rule
    assert result["verdict"] == "lossless", result
    assert result["greedy"]["identical"] == 1
    assert result["distribution"]["tokens"] > 3000
    assert result["distribution"]["distance_seen"] < 0.05


def accept_always(patch: pytest.MonkeyPatch) -> None:
    for module, name in ((verification, "verify"), (block_verification, "verify_block")):

        def broken(t: Any, d: Any, i: Any, n: Any, u: Any, *rest: Any, real: Any) -> Any:
            return real(t, d, i, n, 0 * u, *rest)

        patch.setattr(judging, name, partial(broken, real=getattr(module, name)))


def residual_from_target(patch: pytest.MonkeyPatch) -> None:
    for module in (verification, block_verification):
        patch.setattr(module, "residual", lambda target_SV, draft_SV, d2t: target_SV)


def nothing_left_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(block_verification, "_mass_left", lambda kept_S, *_: 0 * kept_S)


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (accept_always, BLOCK),
        (accept_always, TOKEN),
        (residual_from_target, BLOCK),
        (nothing_left_behind, BLOCK),
    ],
)
def test_broken_verification_is_caught(
    table: Target, drafter: Drafter, damage: Any, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    result = found(table, drafter, rule=rule)
    assert result["verdict"] == "lossy"
    assert result["distribution"]["outcome"] == "failed"


class Retrospective(Policy):
    """Looks past a dip in throughput, at confidences that hang on the tokens themselves."""

    name, draft_len, needs_confidence = "retrospective", 4, True
    seconds = (1.0, 1 / 0.5, 1 / 0.45, 9.0, 9.0)

    def lengths(self, decision: DraftDecision, drafts: Any) -> Sequence[int]:
        survival_RK = drafts.confidence_RK.numpy().cumprod(1)
        return [admission.capacity(a_K[None], self.seconds) for a_K in survival_RK]


@pytest.mark.parametrize("rule", [BLOCK, pytest.param(TOKEN, marks=pytest.mark.soak)])
def test_a_policy_that_looks_ahead_is_caught(table: Target, drafter: Drafter, rule: str) -> None:
    plan = audit.Plan(PLAN.prompts, 12, 12, 400, 64)
    result = found(table, drafter, Retrospective(), plan, rule)
    assert len(result["distribution"]["verify_lengths"]) > 1
    assert result["distribution"]["outcome"] == "failed"


def accept_one_more(patch: pytest.MonkeyPatch) -> None:
    real = verification.verify_greedy

    def broken(best: Any, ids: Any, lengths: Any) -> Any:
        verdict = real(best, ids, lengths)
        more = [max(a, min(1, n)) for a, n in zip(verdict.accepted, lengths, strict=True)]
        return replace(verdict, accepted=more)

    patch.setattr(judging, "verify_greedy", broken)


def test_greedy_text_that_changes_is_caught(
    table: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_one_more(monkeypatch)
    result = found(table, drafter, plan=audit.Plan(PLAN.prompts, 12, 12, 2, 4))
    assert result["greedy"]["outcome"] == "failed"
    assert result["verdict"] == "lossy"


def test_too_little_to_tell(table: Target, drafter: Drafter) -> None:
    result = found(table, drafter, plan=audit.Plan(PLAN.prompts, 4, 4, 1, 4))
    assert result["distribution"]["outcome"] == "undecided"
    assert result["verdict"] == "undecided"


def test_nothing_drafted_is_undecided(table: Target, drafter: Drafter) -> None:
    result = found(table, drafter, "threshold:1", audit.Plan(PLAN.prompts, 4, 4, 4, 4))
    assert result["verdict"] == "undecided"


def test_a_real_target_in_float32(tmp_path: Any) -> None:
    target = load_target(tiny_target_folder(tmp_path / "t"), "float32")
    prompts = [[5, 6, 7], [9], [20, 21]]
    plan = audit.Plan(prompts, 12, 12, 4, 4)
    result = audit.run(target, random_drafter(target, 4, gain=5.0), None, plan)
    assert result["greedy"]["outcome"] == result["seeds"]["outcome"] == "passed"
    assert result["distribution"]["outcome"] != "failed"


def test_excess() -> None:
    excess = audit.Excess()
    assert (excess.z, excess.p_value, excess.distance_seen) == (0, 1, math.inf)
    excess.add(torch.ones(100), torch.full((100,), 0.5))
    assert excess.z == pytest.approx(10)
    assert excess.p_value < 1e-20
    assert excess.distance_seen == pytest.approx((3.8906 + 1.6449) * 5 / 100, rel=1e-3)


def test_a_check_says_what_it_would_take(table: Target, drafter: Drafter) -> None:
    result = found(table, drafter, plan=audit.Plan(PLAN.prompts, 12, 12, 4, 4))
    needs = result["distribution"]["needs"]
    samples = int(needs.rpartition(" ")[2])
    more = found(table, drafter, plan=audit.Plan(PLAN.prompts, 12, 12, samples + samples // 4, 32))
    assert more["distribution"]["outcome"] == "passed"
    assert more["distribution"]["needs"] is None
    assert not result["stopped"]


class Steps:
    """Stops after so many looks, at any of which the clock may have run out."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("looks", [0, 1, 5, 12, 20, 40, 60, 75, 90, 120])
def test_stopped_anywhere_it_answers(table: Target, drafter: Drafter, looks: int) -> None:
    plan = audit.Plan(PLAN.prompts, 12, 12, samples=20, slots=2)
    result = audit.run(table, drafter, None, plan, pace=audit.Pace(stopped=Steps(looks)))
    assert result["verdict"] == "undecided"
    assert result["stopped"]
    for check in ("greedy", "distribution", "seeds"):
        assert result[check]["outcome"] in ("passed", "undecided")
        assert bool(result[check]["needs"]) == (result[check]["outcome"] == "undecided")
    assert result["greedy"]["identical"] in (None, 1)
    assert result["seeds"]["identical"] in (None, 1)
    if looks == 0:
        assert result["greedy"]["prompts"] == result["distribution"]["tokens"] == 0


def test_what_was_seen_before_the_stop_counts(
    table: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_one_more(monkeypatch)
    plan = audit.Plan(PLAN.prompts, 12, 12, samples=2, slots=1)
    result = audit.run(table, drafter, None, plan, pace=audit.Pace(stopped=Steps(40)))
    assert result["greedy"]["outcome"] == "failed"
    assert result["verdict"] == "lossy"


def test_a_time_is_kept_to_by_every_check(
    table: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(pace, "perf_counter", lambda: float(next(clock)))
    told: list[str] = []
    plan = audit.Plan(PLAN.prompts, 12, 12, samples=50, slots=2)
    own = audit.Pace(100.0, on_progress=lambda part, done, planned: told.append(part))
    result = audit.run(table, drafter, None, plan, pace=own)
    assert result["stopped"]
    assert set(told) == {"greedy text", "distribution", "seeds"}
    assert result["greedy"]["prompts"] > 0
    assert result["distribution"]["tokens"] > 0
    assert result["seeds"]["requests"] > 0
    assert next(clock) < 140


def test_progress_never_goes_back(table: Target, drafter: Drafter) -> None:
    told: dict[str, list[float]] = {}

    def note(part: str, done: float, planned: int) -> None:
        assert 0 <= done <= planned
        told.setdefault(part, []).append(done)

    audit.run(table, drafter, None, PLAN, pace=audit.Pace(on_progress=note))
    assert len(told) == 3
    for part in told.values():
        assert part == sorted(part)
