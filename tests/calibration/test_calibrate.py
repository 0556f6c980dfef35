"""Fitting and judging on rounds whose truth is known, and the whole stage on a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark.calibration.calibrate import fit, judge, run
from dspark.calibration.collect import Progress
from dspark.calibration.rounds import Rounds
from dspark.core import SamplingParams
from dspark.data.prompts import Prompt
from dspark.errors import DataError, IncompatibleDrafterError
from dspark.maths.temperature_scaling import sigmoid
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder
from scripted import random_drafter

K = 3
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=10)
OPTIONS: dict[str, Any] = {"rounds": 40, "check_share": 0.5, "slots": 8}


def made_up(temperatures: list[float], count: int, seed: int = 0) -> Rounds:
    """Rounds of a head whose logits are the true ones times a factor by slot."""
    numbers = np.random.default_rng(seed)
    true = numbers.normal(0.8, 1.5, (count, K))
    accepted = np.cumprod(numbers.random((count, K)) < sigmoid(true), axis=1).astype(bool)
    confidence = sigmoid(true * np.array(temperatures))
    return Rounds(confidence, accepted, np.ones((count, K), dtype=bool), sigmoid(true), count // 10)


def test_fitting_lowers_the_error_on_other_rounds() -> None:
    entry = fit(made_up([2.0, 0.5, 1.6], 12_000), PARAMS)
    assert (entry.rounds, entry.prompts, entry.max_new_tokens) == (12_000, 1200, 10)
    assert np.log(np.array(entry.temperatures) / [2.0, 0.5, 1.6]) == pytest.approx(
        np.zeros(K), abs=0.15
    )
    others = made_up([2.0, 0.5, 1.6], 12_000, seed=1)
    assert entry.mean_survival == pytest.approx(others.accepted_NK.mean(axis=0), abs=0.02)
    check = judge(others, entry)
    assert check["rounds"] == 12_000
    assert check["ece_before_mean"] > 0.04
    assert check["ece_after_mean"] < 0.015
    assert 0.004 < check["noise_floor_mean"] < check["ece_after_mean"] * 1.3
    assert 0.7 < check["auroc_mean"] < 0.95
    assert check["auroc_true_mean"] == pytest.approx(check["auroc_mean"], abs=0.02)
    for k, row in enumerate(check["positions"]):
        assert (row["k"], row["rounds"]) == (k + 1, 12_000)
        assert row["base_rate"] == pytest.approx(others.accepted_NK[:, k].mean())
        assert row["temperature"] == entry.temperatures[k]
        assert row["ece_after"] < row["ece_before"]
        assert row["ece_mass_after"] < row["ece_mass_before"]
        assert row["brier_after"] < row["brier_before"]
        for curve in (row["curve_before"], row["curve_after"]):
            assert sum(curve["count"]) == 12_000
        assert np.dot(row["curve_after"]["observed"], row["curve_after"]["count"]) == pytest.approx(
            others.accepted_NK[:, k].sum()
        )


def test_only_known_outcomes_are_judged() -> None:
    rounds = made_up([1.0] * K, 400)
    entry = fit(rounds, PARAMS)
    rounds.valid_NK[100:, 1] = False
    rounds.valid_NK[:, 2] = False
    first, second, third = judge(rounds, entry)["positions"]
    assert [row["rounds"] for row in (first, second, third)] == [400, 100, 0]
    assert second["base_rate"] == rounds.accepted_NK[:100, 1].mean()
    assert math.isnan(third["ece_after"])
    assert third["curve_after"]["count"] == []
    # A slot without rounds does not spoil the means.
    assert judge(rounds, entry)["ece_after_mean"] == pytest.approx(
        (first["ece_after"] + second["ece_after"]) / 2
    )


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(tiny_target_folder(tmp_path_factory.mktemp("target")), "float32")


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", [{"role": "user", "content": f"count to {i}"}]) for i in range(count)]


def test_the_whole_stage(target: Target, tmp_path: Path) -> None:
    drafter = random_drafter(target, block_size=K)
    part = tmp_path / "part.jsonl"
    entry, check = run(target, drafter, prompts(30), PARAMS, part, **OPTIONS)
    assert check["rounds"] >= 40
    assert (check["fit_rounds"], check["fit_prompts"]) == (entry.rounds, entry.prompts)
    assert len(entry.temperatures) == len(check["positions"]) == K
    assert (check["drafter"], check["dtype"], check["temperature"]) == ("dspark", "float32", 1.0)
    # Judging that entry again gives the same figures without fitting.
    fixed = replace(entry, temperatures=(2.0,) * K)
    for given, expected in ((entry, check), (fixed, None)):
        same, again = run(target, drafter, prompts(30), PARAMS, part, **OPTIONS, entry=given)
        assert same is given
        assert (str(again) == str(expected)) == (expected is not None)  # nan is not itself
    # Nor does anybody answer prompts that would only be fitted on.
    seen: list[Progress] = []
    elsewhere = tmp_path / "elsewhere.jsonl"
    _, alone = run(
        target,
        drafter,
        prompts(30),
        PARAMS,
        elsewhere,
        **OPTIONS,
        entry=entry,
        on_progress=seen.append,
    )
    assert str(alone) == str(check)
    assert {progress.fit_rounds for progress in seen} == {0}


def test_refusals(target: Target, tmp_path: Path) -> None:
    part = tmp_path / "part.jsonl"
    silent = random_drafter(target, confidence_head=False)
    with pytest.raises(IncompatibleDrafterError, match="no confidence head"):
        run(target, silent, prompts(2), PARAMS, part, **OPTIONS)
    drafter = random_drafter(target)
    with pytest.raises(DataError, match=r"0 rounds to fit on, \d+ to check .* 2 prompts, 0 of"):
        run(target, drafter, prompts(2), PARAMS, part, **OPTIONS | {"check_share": 0.999})
    long = [Prompt("p", [{"role": "user", "content": "x " * 900}])]
    with pytest.raises(DataError, match="1 prompts, 1 of them too long"):
        run(target, drafter, long, PARAMS, part, **OPTIONS)
