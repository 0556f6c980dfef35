"""Rounds for calibration: whose they are, how many, and that an interruption loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark.calibration.collect import (
    Collected,
    Progress,
    collect,
    part_file,
)
from dspark.calibration.prompts import in_check
from dspark.calibration.rounds import Judged, to_arrays
from dspark.core import RULES, SamplingParams
from dspark.data.prompts import Prompt
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder
from scripted import random_drafter, whole_blocks

PARAMS = SamplingParams(temperature=1.0, max_new_tokens=12)
OPTIONS: dict[str, Any] = {"rounds": 60, "check_share": 0.5, "slots": 4, "seed": 3}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(tiny_target_folder(tmp_path_factory.mktemp("target")), "float32")


@pytest.fixture(scope="module")
def drafter(target: Target) -> Drafter:
    return random_drafter(target, block_size=3)


def made_up(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", [{"role": "user", "content": f"count to {i}"}]) for i in range(count)]


def test_what_decides_rounds_decides_the_file(tmp_cache: Path) -> None:
    file = part_file(made_up(3), PARAMS, 0, dtype="float32")
    assert file == part_file(made_up(3), PARAMS, 0, dtype="float32")
    others = [
        part_file(made_up(4), PARAMS, 0, dtype="float32"),
        part_file(made_up(3), replace(PARAMS, temperature=0.5), 0, dtype="float32"),
        part_file(made_up(3), PARAMS, 1, dtype="float32"),
        part_file(made_up(3), PARAMS, 0, dtype="bfloat16"),
    ]
    assert len({file, *others}) == 5
    assert file.is_relative_to(tmp_cache)


# ---- the run --------------------------------------------------------------------------------


def same(one: Collected, other: Collected) -> bool:
    return one.skipped == other.skipped and all(
        a.prompts == b.prompts
        and np.array_equal(a.accepted_NK, b.accepted_NK)
        and np.array_equal(a.valid_NK, b.valid_NK)
        and np.allclose(a.confidence_NK, b.confidence_NK, atol=1e-5)
        for a, b in ((one.fit, other.fit), (one.check, other.check))
    )


@pytest.fixture(scope="module")
def whole(target: Target, drafter: Drafter, tmp_path_factory: pytest.TempPathFactory) -> Collected:
    part = tmp_path_factory.mktemp("whole") / "part.jsonl"
    return collect(target, drafter, made_up(60), PARAMS, part, **OPTIONS)


def test_a_slot_s_rate_is_how_often_it_passes_behind_those_that_stand(
    target: Target, drafter: Drafter, tmp_path: Path
) -> None:
    means = {}
    for rule in RULES:
        found = collect(
            target,
            drafter,
            made_up(150),
            PARAMS,
            tmp_path / rule,
            **OPTIONS | {"rounds": 500, "slots": 32, "verification": rule},
        )
        rounds = found.check
        for k in (1, 2):
            reached = rounds.valid_NK[:, k] & rounds.accepted_NK[:, k - 1]
            true_N = rounds.overlap_NK[reached, k].clip(0, 1)
            spread = 4 * np.sqrt((true_N * (1 - true_N)).sum()) / len(true_N)
            seen = rounds.accepted_NK[reached, k].mean()
            assert seen == pytest.approx(true_N.mean(), abs=spread)
        means[rule] = float(rounds.overlap_NK[rounds.valid_NK[:, 2], 2].mean())
    assert means["block"] > means["token"] + 0.01  # the drafts are no better, and hold longer


def test_enough_rounds_of_whole_answers(whole: Collected) -> None:
    assert 60 <= len(whole.check) < 60 + PARAMS.max_new_tokens
    assert 0 < whole.check.prompts + whole.fit.prompts < 60
    assert len(whole.fit) > 0
    for rounds in (whole.fit, whole.check):
        assert rounds.accepted_NK[:, 0].any()
        assert not rounds.accepted_NK.all()
        assert rounds.valid_NK[:, 0].all()
        assert ((rounds.confidence_NK > 0) & (rounds.confidence_NK < 1)).all()
        # c* says how often slot 1 is accepted: the mean over rounds is the share.
        true_N = rounds.overlap_NK[:, 0]
        spread = 4 * np.sqrt((true_N * (1 - true_N)).sum()) / len(true_N)
        assert rounds.accepted_NK[:, 0].mean() == pytest.approx(true_N.mean(), abs=spread)


def test_the_parts_are_those_prompts_rounds(
    target: Target, drafter: Drafter, tmp_path: Path
) -> None:
    """No prompt in both parts, and the confidences are those the engine saw."""
    part = tmp_path / "part.jsonl"
    options = OPTIONS | {"rounds": 10_000}
    collected = collect(target, drafter, made_up(9), PARAMS, part, **options)
    rows = {row["prompt"]: row["rounds"] for row in map(json.loads, part.read_text().splitlines())}
    assert rows.keys() == {f"p{i}" for i in range(9)}
    for rounds, wanted in ((collected.fit, False), (collected.check, True)):
        mine = [rows[f"p{i}"] for i in range(9) if in_check(f"p{i}", 0.5) == wanted]
        assert rounds.prompts == len(mine)
        sure = [confidence for answer in mine for *_, confidence in answer]
        assert rounds.confidence_NK.tolist() == sure
    greedy = replace(PARAMS, temperature=0.0)
    again = collect(target, drafter, made_up(1), greedy, tmp_path / "b", **options)
    ids = target.encode_messages(made_up(1)[0].messages)
    [request] = Engine(target, drafter, whole_blocks(drafter)).generate([ids], greedy)
    expected = to_arrays([list(map(Judged, request.rounds))], 3, PARAMS.max_new_tokens)
    [mine] = [r for r in (again.fit, again.check) if len(r)]
    assert np.isnan(mine.overlap_NK).all(), "c* says nothing of greedy acceptance"
    assert np.array_equal(mine.accepted_NK, expected.accepted_NK)
    assert np.allclose(mine.confidence_NK, expected.confidence_NK, atol=1e-5)


def test_the_number_of_slots_does_not_matter(
    target: Target, drafter: Drafter, tmp_path: Path, whole: Collected
) -> None:
    options = OPTIONS | {"slots": 9}
    assert same(
        whole, collect(target, drafter, made_up(60), PARAMS, tmp_path / "part.jsonl", **options)
    )


@pytest.mark.parametrize("at", [1, 30, 59])
def test_an_interrupted_run_goes_on(
    target: Target, drafter: Drafter, tmp_path: Path, whole: Collected, at: int
) -> None:
    part = tmp_path / "part.jsonl"

    def interrupt(progress: Progress) -> None:
        if progress.check_rounds >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(target, drafter, made_up(60), PARAMS, part, **OPTIONS, on_progress=interrupt)
    finished = part.read_text().count("\n") if part.exists() else 0
    with part.open("a") as file:
        file.write('{"prompt": "p1", "rou')  # as a kill in the midst of a write leaves it
    steps: list[Progress] = []
    again = collect(target, drafter, made_up(60), PARAMS, part, **OPTIONS, on_progress=steps.append)
    assert same(again, whole)
    rows = [json.loads(line)["prompt"] for line in part.read_text().splitlines()]
    assert len(set(rows)) == len(rows) > finished  # nothing was answered twice
    assert at == 1 or finished > 0


def test_long_prompts_are_skipped_and_counted(
    target: Target, drafter: Drafter, tmp_path: Path
) -> None:
    long = [Prompt(n, [{"role": "user", "content": "x " * n}]) for n in (240, 2000)]
    long = [replace(p, id=f"long{i}") for i, p in enumerate(long)]
    prompts = [long[0], *made_up(4), long[1]]
    part = tmp_path / "part.jsonl"
    collected = collect(target, drafter, prompts, PARAMS, part, **OPTIONS)
    assert collected.skipped == 2
    assert collected.fit.prompts + collected.check.prompts == 4
