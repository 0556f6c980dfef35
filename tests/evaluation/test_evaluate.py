"""The evaluation on a tiny target: figures, independence of the batch, policies, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.core import Request
from dspark.data.prompts import Prompt
from dspark.engine import stats
from dspark.engine.policy_names import parse_policy
from dspark.errors import ConfigError, DataError, RequestError
from dspark.evaluation import evaluate
from dspark.evaluation.cells import (
    Cell,
    Contender,
    Dataset,
    Settings,
    load_contender,
    plan_cells,
    questions_of,
)
from dspark.evaluation.evaluate import Progress, answer, run
from dspark.evaluation.trace import TraceFile, key_of
from dspark.targets.target import Target, load_target
from scripted import random_drafter
from tiny import tiny_drafter, tiny_home

FEW = Settings(max_new_tokens=16, slots=4)
TEXTS = ("add the rain", "sort three birds", "name a river", "count one line", "list it")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tiny_home(tmp_path_factory.mktemp("home"), count=12)
    tiny_drafter(home, steps=30)
    return home


@pytest.fixture(scope="module")
def target(home: Path) -> Target:
    return load_target(home / "target", "float32")


@pytest.fixture(scope="module")
def trained(home: Path, target: Target) -> Contender:
    return load_contender(home / "run" / "drafter", target)


@pytest.fixture(scope="module")
def fresh(target: Target) -> Contender:
    """A drafter that learned nothing."""
    return Contender("fresh", random_drafter(target, 3), 10)


def dataset(name: str = "one", count: int = 5, domain: str = "chat") -> Dataset:
    prompts = [
        Prompt(f"{name}-{i}", [{"role": "user", "content": f"{text} {i}"}], domain)
        for i, text in enumerate(TEXTS[:count])
    ]
    return Dataset(name, prompts)


ONE, TWO = dataset(), dataset("two", 3, "math")


def without_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows]


# ---- figures ----------------------------------------------------------------------------------


def test_rows_agree_with_the_requests(
    target: Target, trained: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Request]] = []

    def spy(*args: Any) -> Any:
        requests, seconds = answer(*args)
        seen.append(requests)
        return requests, seconds

    monkeypatch.setattr(evaluate, "answer", spy)
    result = run(target, [trained], [ONE], Settings((0.0, 1.0), max_new_tokens=16))
    assert result["dtype"] == "float32"
    assert result["target"] == "target"
    assert len(result["rows"]) == len(seen) == 2
    for row, requests in zip(result["rows"], seen, strict=True):
        assert row["prompts"] == 5
        assert row["accepted_length"] == round(stats.accepted_length(requests), 4)
        shares = stats.accept_by_position(requests)
        assert row["accept_by_position"][: len(shares)] == pytest.approx(shares, abs=1e-4)
        assert row["verified_tokens"] == stats.verified_tokens(requests)
        assert row["wasted_tokens"] == stats.wasted_tokens(requests)
        assert row["new_tokens"] == sum(len(r.output_ids) for r in requests)
        assert row["per_prompt"]["ids"] == [prompt.id for prompt in ONE.prompts]
        assert row["per_prompt"]["committed"] == [len(r.output_ids) - 1 for r in requests]
        low, high = row["accepted_length_ci"]
        assert low <= row["accepted_length"] <= high
        assert row["tokens_per_s"] > 0
    assert result["rows"][0]["accepted_length"] > 1.3


def test_a_row_names_its_drafter(target: Target, trained: Contender, fresh: Contender) -> None:
    row, other = run(target, [trained, fresh], [TWO], FEW)["rows"]
    assert (row["drafter"], row["kind"], row["policy"]) == ("dspark", "dspark", "fixed:4")
    assert row["shape"] == {
        "num_layers": 1,
        "block_size": 4,
        "markov_rank": 16,
        "markov_head_type": "vanilla",
        "draft_vocab_size": None,
        "parameters": row["shape"]["parameters"],
    }
    assert row["training"]["anchors"] > 0
    assert (row["dataset"], row["domain"], row["skipped"]) == ("two", "math", 0)
    assert (other["training"], other["policy"]) == (None, "fixed:3")


def test_parameters_are_those_that_training_changes(home: Path, trained: Contender) -> None:
    from safetensors.torch import load_file

    stored = load_file(home / "run" / "drafter" / "model.safetensors")
    assert trained.parameters == sum(value.numel() for value in stored.values())


def test_macro_compares_drafters(target: Target, trained: Contender, fresh: Contender) -> None:
    result = run(target, [trained, fresh], [ONE, TWO], FEW)
    order = [(row["drafter"], row["dataset"]) for row in result["rows"]]
    assert order == [("dspark", "one"), ("dspark", "two"), ("fresh", "one"), ("fresh", "two")]
    mine, theirs = result["macro"]
    assert set(mine["by_domain"]) == {"chat", "math"}
    assert mine["gains"]["fresh"]["gain"] > 0 > theirs["gains"]["dspark"]["gain"]
    assert mine["gains"]["fresh"]["ci"][0] > 0


# ---- what answers depend on -------------------------------------------------------------------


def cell(contender: Contender, temperature: float, policy: str | None = None) -> Cell:
    size = contender.drafter.config.block_size
    return Cell(contender, ONE, temperature, parse_policy(policy or f"fixed:{size}", size))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_the_batch(
    target: Target, trained: Contender, temperature: float
) -> None:
    settings = [Settings((temperature,), max_new_tokens=16, slots=slots) for slots in (1, 4)]
    questions = questions_of(target, ONE, 0)
    texts = [
        [r.output_ids for r in answer(target, cell(trained, temperature), questions, s)[0]]
        for s in settings
    ]
    assert texts[0] == texts[1]
    rows = [run(target, [trained], [ONE], s)["rows"] for s in settings]
    assert without_speed(rows[0]) == without_speed(rows[1])


def test_every_prompt_has_a_seed_of_its_own(target: Target, trained: Contender) -> None:
    same = Dataset("same", [Prompt(f"p{i}", ONE.prompts[0].messages) for i in range(3)])
    assert same.domain == "unknown"
    questions = questions_of(target, same, 0)
    assert len({question.seed for question in questions}) == 3
    drawn, _ = answer(target, cell(trained, 1.0), questions, FEW)
    assert len({tuple(r.output_ids) for r in drawn}) == 3
    greedy, _ = answer(target, cell(trained, 0.0), questions, FEW)
    assert len({tuple(r.output_ids) for r in greedy}) == 1
    assert questions == questions_of(target, same, 0)
    assert questions[0].seed != questions_of(target, same, 1)[0].seed
    assert questions[0].seed != questions_of(target, ONE, 0)[0].seed


def test_threshold_zero_verifies_all_and_one_almost_nothing(
    target: Target, trained: Contender
) -> None:
    settings = Settings(max_new_tokens=16, policy="fixed:4", thresholds=(0.0, 1.0, 0.0))
    fixed, everything, nothing = run(target, [trained], [ONE], settings)["rows"]
    assert [r["policy"] for r in (everything, nothing)] == ["threshold:0", "threshold:1"]
    same = ("verified_tokens", "wasted_tokens", "accepted_length", "per_prompt")
    assert [everything[k] for k in same] == [fixed[k] for k in same]
    assert nothing["verified_tokens"] <= 0.01 * fixed["verified_tokens"]
    assert nothing["accepted_length"] == pytest.approx(1, abs=0.02)
    assert nothing["new_tokens"] == fixed["new_tokens"]  # greedy text is the same


# ---- prompts that do not fit, and refusals ----------------------------------------------------


def test_long_prompts_are_skipped_and_counted(target: Target, trained: Contender) -> None:
    long = Prompt("long", [{"role": "user", "content": "add the rain " * 100}], "chat")
    warned: list[str] = []
    result = run(target, [trained], [Dataset("one", [long, *ONE.prompts])], FEW, warn=warned.append)
    (row,) = result["rows"]
    assert (row["skipped"], row["prompts"]) == (1, 5)
    assert "long" not in row["per_prompt"]["ids"]
    assert warned == ["one: 1 prompts skipped, too long for the target's context"]
    with pytest.raises(DataError, match=r"No prompt of one fits"):
        run(target, [trained], [Dataset("one", [long])], FEW)


def test_refusals(target: Target, trained: Contender, fresh: Contender) -> None:
    blind = Contender("blind", random_drafter(target, 3, confidence_head=False), 1)
    with pytest.raises(ConfigError, match=r"threshold:0.5 needs confidences, and drafter blind"):
        plan_cells([trained, blind], [ONE], Settings(thresholds=(0.5,)))
    with pytest.raises(ConfigError, match=r"Two drafters have the same name .found: dspark"):
        plan_cells([trained, fresh, trained], [ONE], FEW)
    with pytest.raises(ConfigError, match=r"Two data files have the same name .found: one"):
        plan_cells([trained], [ONE, TWO, ONE], FEW)
    with pytest.raises(ConfigError, match=r"fixed:4 does not fit"):
        plan_cells([trained, fresh], [ONE], Settings(policy="fixed:4"))
    same = Settings(policy="threshold:.5", thresholds=(0.5,))
    assert len(plan_cells([trained], [ONE], same)) == 1
    with pytest.raises(RequestError, match=r"temperature is out of range"):
        Settings((0.0, -1.0))


# ---- resuming ---------------------------------------------------------------------------------

BOTH = Settings((0.0, 1.0), max_new_tokens=8, slots=4)


class Killed(Exception):
    pass


def stop_at(cells_done: int, seen: list[Progress]) -> Any:
    def on_progress(state: Progress) -> None:
        seen.append(state)
        if state.cells_done == cells_done and state.prompts_done > 0:
            raise Killed  # in the middle of a cell

    return on_progress


def test_a_killed_run_goes_on(
    target: Target, trained: Contender, fresh: Contender, tmp_path: Path
) -> None:
    args = (target, [trained, fresh], [ONE, TWO], BOTH)
    whole_trace, part_trace = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    whole = run(*args, trace=TraceFile(whole_trace))
    path, seen = tmp_path / "out.json.cells.jsonl", list[Progress]()
    with pytest.raises(Killed):
        run(
            *args,
            cells_path=path,
            trace=TraceFile(part_trace),
            on_progress=stop_at(3, seen),
        )
    kept = [json.loads(line)["row"] for line in path.read_text().splitlines()]
    assert len(kept) == 3
    with path.open("a") as file:
        file.write('{"fingerprint": {"ta')  # torn by the kill
    again: list[Progress] = []
    result = run(*args, cells_path=path, trace=TraceFile(part_trace), on_progress=again.append)
    assert len({state.cell for state in again}) == 5, "finished cells are not made again"
    assert not {state.cell for state in again} & {key_of(row) for row in kept}
    assert all(row in result["rows"] for row in kept), "their speed is the measured one"
    assert without_speed(result["rows"]) == without_speed(whole["rows"])
    assert result["macro"] == whole["macro"]
    first, second = (sorted(p.read_text().splitlines()) for p in (whole_trace, part_trace))
    assert first == second, "no round twice, none lost"


@pytest.mark.parametrize(
    "change",
    [
        {"settings": Settings(max_new_tokens=13, slots=4)},
        {"settings": Settings(max_new_tokens=12, slots=4, seed=1)},
        {"settings": Settings(max_new_tokens=12, slots=4, top_k=3)},
        {"settings": Settings(max_new_tokens=12, slots=2)},
        {"sha256": {"model.safetensors": "other"}},
        {"datasets": [dataset(count=4)]},
    ],
)
def test_other_settings_are_computed_anew(
    target: Target, fresh: Contender, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "cells.jsonl"
    settings, seen = Settings(max_new_tokens=12, slots=4), list[Progress]()
    run(target, [fresh], [ONE], settings, cells_path=path)
    run(target, [fresh], [ONE], settings, cells_path=path, on_progress=seen.append)
    assert not seen
    drafter = Contender("fresh", fresh.drafter, 10, change.get("sha256", {}))
    run(
        target,
        [drafter],
        change.get("datasets", [ONE]),
        change.get("settings", settings),
        cells_path=path,
        on_progress=seen.append,
    )
    assert seen


def test_a_finished_cell_without_its_trace_is_made_again(
    target: Target, fresh: Contender, tmp_path: Path
) -> None:
    path, seen = tmp_path / "cells.jsonl", list[Progress]()
    settings = Settings(max_new_tokens=8)
    (row,) = run(target, [fresh], [ONE], settings, cells_path=path)["rows"]
    trace = TraceFile(tmp_path / "trace.jsonl")
    run(target, [fresh], [ONE], settings, cells_path=path, trace=trace, on_progress=seen.append)
    assert seen
    header, *records = map(json.loads, trace.path.read_text().splitlines())
    assert header["target"] == "target"
    assert len(records) == row["rounds"]
    assert {record["prompt"] for record in records} == {prompt.id for prompt in ONE.prompts}
    assert all(len(record["confidence"]) == 3 for record in records)


def test_nothing_that_is_written_holds_prompt_text(
    target: Target, fresh: Contender, tmp_path: Path
) -> None:
    trace = TraceFile(tmp_path / "trace.jsonl")
    result = run(target, [fresh], [ONE], FEW, cells_path=tmp_path / "cells", trace=trace)
    written = json.dumps(result) + "".join(p.read_text() for p in tmp_path.iterdir())
    assert "one-0" in written
    assert not any(text in written for text in TEXTS)
