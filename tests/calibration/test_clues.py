"""Rounds to fit a confidence head with: what they say, and that an interruption loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.calibration.clues import ClueRounds, collect_clues
from dspark.core import RULES, SamplingParams
from dspark.data.prompts import Prompt
from dspark.engine.engine import Engine
from dspark.errors import DataError
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder
from scripted import random_drafter

K = 3
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=24)
OPTIONS: dict[str, Any] = {"rounds": 500, "slots": 8, "seed": 3}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = tiny_target_folder(tmp_path_factory.mktemp("target"))
    return load_target(folder, "float32")


@pytest.fixture(scope="module")
def drafter(target: Target) -> Any:
    return random_drafter(target, K)


def made_up(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", [{"role": "user", "content": f"count to {i}"}]) for i in range(count)]


@pytest.fixture(scope="module", params=RULES)
def rule(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def options(rule: str) -> dict[str, Any]:
    return OPTIONS | {"verification": rule}


@pytest.fixture(scope="module")
def whole(
    target: Target, drafter: Any, options: Any, tmp_path_factory: pytest.TempPathFactory
) -> ClueRounds:
    folder = tmp_path_factory.mktemp("whole") / "clues"
    return collect_clues(target, drafter, made_up(200), PARAMS, folder, **options)


def by_prompt(rounds: ClueRounds) -> dict[str, torch.Tensor]:
    counts = [count for _, count in rounds.prompts]
    parts = rounds.goal_NK.split(counts)
    return {name: part for (name, _), part in zip(rounds.prompts, parts, strict=True)}


def test_rounds_say_how_likely_their_prefixes_were(whole: ClueRounds, drafter: Any) -> None:
    assert len(whole) >= 500
    assert whole.clues_NKC.shape == (len(whole), K, drafter.clue_count)
    assert bool((whole.goal_NK >= 0).all())
    assert bool((whole.goal_NK[:, 1:] <= 1 + 1e-6).all())
    for k in range(K):
        rows = whole.known_NK[:, k]
        expected, seen = whole.goal_NK[rows, k].mean(), (whole.accepted_N[rows] > k).float().mean()
        error = (0.25 / int(rows.sum())) ** 0.5
        assert abs(float(expected - seen)) < 4 * error
    assert float(whole.goal_NK[:, 0].mean()) > 2 * float(whole.goal_NK[:, 1].mean()) > 0


def test_nothing_is_known_behind_a_stop_token(target: Target, whole: ClueRounds) -> None:
    assert bool(whole.known_NK[:, 0].all())
    assert bool((whole.known_NK[:, 1:] <= whole.known_NK[:, :-1]).all())
    stops = [answer for answer in whole.known_NK if not bool(answer.all())]
    assert stops  # else nothing was tested


def test_the_split_is_by_prompt(whole: ClueRounds) -> None:
    fit, held = whole.split(0.3)
    assert len(fit) + len(held) == len(whole)
    assert 0 < len(held) < len(fit)
    assert not {name for name, _ in fit.prompts} & {name for name, _ in held.prompts}
    whole_by, held_by = by_prompt(whole), by_prompt(held)
    for name, goal in held_by.items():
        assert torch.equal(goal, whole_by[name])


def test_an_interrupted_run_goes_on(
    target: Target, drafter: Any, whole: ClueRounds, options: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from dspark.calibration import clues

    monkeypatch.setattr(clues, "_PART", 40)
    steps = []

    def stop(progress: object) -> None:
        steps.append(progress)
        if len(steps) == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_clues(target, drafter, made_up(200), PARAMS, tmp_path, on_progress=stop, **options)
    kept = sorted(tmp_path.iterdir())
    assert kept
    assert not drafter.keep_clues

    submitted = []
    original = Engine.submit
    monkeypatch.setattr(
        Engine, "submit", lambda self, *a, **k: submitted.append(1) or original(self, *a, **k)
    )
    rest = collect_clues(target, drafter, made_up(200), PARAMS, tmp_path, **options)
    assert len(rest) >= 500
    assert len(submitted) < len(rest.prompts)  # what was kept is not answered again
    mine, theirs = by_prompt(rest), by_prompt(whole)
    shared = mine.keys() & theirs.keys()
    assert len(shared) > 10
    for name in shared:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-4, rtol=1e-3)

    sorted(tmp_path.iterdir())[0].write_bytes(b"no")
    with pytest.raises(DataError, match="Cannot read"):
        collect_clues(target, drafter, made_up(200), PARAMS, tmp_path, **options)


def test_prompts_that_are_all_too_long(target: Target, drafter: Any, tmp_path: Path) -> None:
    prompts = [Prompt("long", [{"role": "user", "content": "count " * 5000}])]
    with pytest.raises(DataError, match=r"1 prompts, 1 of them too long"):
        collect_clues(target, drafter, prompts, PARAMS, tmp_path, **OPTIONS)
