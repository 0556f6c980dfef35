"""Survival of drafts without confidences, learned from rounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dspark.core import RoundRecord, SamplingParams
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.engine.peaks import FIRST_FITS, PeakSurvival
from dspark.maths.sampling import probabilities
from dspark.targets.target import Target
from made_up import GREEDY
from scripted import random_drafter

K = 3
WARM = SamplingParams(temperature=1.0)


def told(accepted: int, verified: int, committed: int | None = None, peak: float = 0.5) -> Any:
    made = accepted + 1 if committed is None else committed
    return RoundRecord(K, verified, accepted, made, confidence=(peak,) * K)


def learn(survival: PeakSurvival, record: RoundRecord, count: int, params: Any = GREEDY) -> None:
    for _ in range(count):
        survival.take(record, params)


def first(survival: PeakSurvival, params: SamplingParams = GREEDY) -> float:
    return survival.survival(params, [0.5] * K)[0]


def test_outcomes_teach_their_own_way_of_sampling() -> None:
    survival = PeakSurvival(K)
    assert first(survival) == pytest.approx(0.5)
    learn(survival, told(0, 2), 64)
    assert first(survival) < 0.1
    assert first(survival, WARM) == pytest.approx(0.5)
    cold = survival.mean(GREEDY)
    assert cold is not None
    assert cold.survival_K[0] < 0.1
    assert survival.mean(WARM) is None
    learn(survival, told(K, K), 64, WARM)
    assert first(survival, WARM) > 0.9
    warm = survival.mean(WARM)
    assert warm is not None
    assert warm.tokens[K] > 2.5


def test_fits_come_early_and_then_seldom() -> None:
    survival = PeakSurvival(K)
    changed = [n for n in range(1, 200) if survival.take(told(1, 2), GREEDY)]
    assert changed == [*FIRST_FITS, 64, 128, 192]


def test_grammars_teach_nothing() -> None:
    survival, bound = PeakSurvival(K), replace(GREEDY, grammar=object())  # type: ignore[arg-type]
    learn(survival, told(0, 2), 64, bound)
    learn(survival, RoundRecord(K, 2, 0, 1), 64)  # no peaks, nothing to learn from
    assert first(survival) == pytest.approx(0.5)


def test_what_was_never_judged_teaches_nothing() -> None:
    """Behind an accepted stop token, a length limit, or where nothing was verified."""
    survival = PeakSurvival(K)
    learn(survival, told(0, 0, 1), 32)
    assert first(survival) == pytest.approx(0.5)
    learn(survival, told(1, 3, 1), 64)
    deep = survival.survival(GREEDY, [0.5] * K)
    assert deep[0] > 0.5
    assert deep[1] / deep[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("kind", ["dspark", "dflash", "eagle3", "mtp"])
@pytest.mark.parametrize("params", [GREEDY, WARM])
def test_drafters_give_their_largest_probabilities_where_asked(
    target: Target, kind: str, params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = random_drafter(target, K, kind=kind, confidence_head=False, gain=20.0)
    blocks: list[Any] = []
    draft = type(drafter).draft
    monkeypatch.setattr(
        type(drafter),
        "draft",
        lambda self, *a, **m: blocks.append(draft(self, *a, **m)) or blocks[-1],
    )
    for policy in ("auto", f"fixed:{K}"):
        blocks.clear()
        engine = Engine(target, drafter, policy, slots=2, max_len=64)
        blocks.clear()
        engine.generate([[5, 6, 7], [8, 9]], replace(params, max_new_tokens=6))
        asked = policy == "auto"
        assert {block.peaks for block in blocks} <= {asked}
        assert all((block.confidence_RK is not None) is asked for block in blocks)
        for block in blocks if asked and params.temperature else []:
            exact = block.draft_probs_RKV.amax(-1)
            torch.testing.assert_close(block.confidence_RK, exact)


def test_greedy_peaks_are_those_of_temperature_one(target: Target, drafter: Drafter) -> None:
    """With and without company above temperature 0, and with the head's biases."""
    bare = random_drafter(target, K, confidence_head=False, gain=20.0)
    engine = Engine(target, bare, f"fixed:{K}", slots=1, max_len=64)
    request = engine.submit([5, 6, 7], GREEDY)
    engine.step()
    cache: Any = engine.runner._context.cache  # type: ignore[union-attr]
    where: Any = ([request.anchor], [request.anchor_pos], [0])
    draws = torch.zeros(1, K).double().numpy()
    greedy = bare.draft(cache, *where, [GREEDY], None, peaks=True)  # type: ignore[call-arg]
    ids = greedy.draft_ids_RK[0].tolist()
    warm = bare.draft(cache, *where, [WARM], draws, steps=1, peaks=True)  # type: ignore[call-arg]
    whole = bare.draft(cache, *where, [WARM], draws, peaks=True)  # type: ignore[call-arg]
    assert warm.draft_probs_RKV is not None
    assert whole.draft_probs_RKV is not None
    first_p = whole.draft_probs_RKV[0, 0]
    assert greedy.confidence_RK is not None
    assert float(greedy.confidence_RK[0, 0]) == pytest.approx(float(first_p.max()), abs=1e-5)
    assert int(first_p.argmax()) == ids[0]
    assert float(probabilities(first_p.log()[None], 1.0, 0, 1.0).max()) == pytest.approx(
        float(first_p.max()), abs=1e-5
    )
