"""Runs as they lie on disk: whole ones, parts of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.drafters.checkpoint import read_checkpoint
from dspark.drafters.registry import make_drafter
from dspark.errors import CheckpointError, ConfigError, DataError
from dspark.evaluation.runs import find_runs, read_run
from dspark.training.trainer import Trainer
from run_folders import log_line, write_run
from tiny import tiny_home, tiny_recipe


def test_a_run_without_weights(tmp_path: Path) -> None:
    run = read_run("a", write_run(tmp_path / "a"))
    assert run.measure.accepted_length == 1.8
    assert run.measure.acceptance == [0.5, 0.4, 0.3]
    assert [(at.step, at.accepted_length) for at in run.curve] == [(200, 1.5), (400, 1.8)]
    assert run.parameters is None
    assert run.shape.markov_rank == 128
    assert list(run.files) == ["drafter/provenance.json", "train_log.jsonl"]


def test_config_json_has_the_last_word_on_the_shape(tmp_path: Path) -> None:
    made = {"dspark_kind": "dspark", "num_hidden_layers": 3, "markov_rank": 48, "block_size": 7}
    shape = read_run("a", write_run(tmp_path / "a", checkpoint=made)).shape
    assert (shape.num_layers, shape.markov_rank, shape.block_size) == (3, 48, 7)
    assert shape.markov_head_type == "vanilla"
    assert shape.draft_vocab_size == 0  # the recipe wants more tokens than the target has


def test_a_drafter_kept_aside_has_the_measure_of_its_own_step(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", held_out=None, step=250)
    (folder / "drafter").rename(folder / "drafter-50")
    run = read_run("half", folder / "drafter-50")
    assert run.measure.accepted_length == 1.5
    assert [at.step for at in run.curve] == [200]
    assert list(run.files) == ["provenance.json", "train_log.jsonl"]


def test_a_drafter_elsewhere_leaves_the_log_beside_it_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "drafter").rename(folder / "shipped")
    assert read_run("shipped", folder / "shipped").curve == []


def test_what_a_real_run_leaves(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    home = tiny_home(tmp_path, count=16)
    measured = Trainer(tiny_recipe(home, home / "run", run={"steps": 4})).run()
    run = read_run("run", home / "run")
    assert run.measure.accepted_length == measured["accepted_length"]
    assert run.measure.acceptance == measured["acceptance"]
    assert [at.step for at in run.curve] == [4]
    drafter = make_drafter(read_checkpoint(home / "run" / "drafter")[0])
    assert run.parameters == sum(weight.numel() for weight in drafter.parameters())
    assert run.shape.model_dump() == {
        "kind": "dspark",
        "block_size": 4,
        "num_layers": 1,
        "markov_rank": 16,
        "markov_head_type": "vanilla",
        "draft_vocab_size": 0,
    }
    weights = home / "run" / "drafter" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        read_run("run", home / "run")


# ---- names ----------------------------------------------------------------------------------


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c=d"):
        write_run(tmp_path / name)
    monkeypatch.chdir(tmp_path / "a")
    found = find_runs([".", "../b/drafter", "x=../b", "../c=d"])
    assert [name for name, _ in found] == ["a", "b", "x", "c=d"]
    assert found[2][1] == Path("../b")


def test_names_that_do_not_work(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"the same name \(found: a\)\. Name one"):
        find_runs([str(folder), str(folder / "drafter")])
    with pytest.raises(ConfigError, match="name is empty"):
        find_runs([f"={folder}"])
    with pytest.raises(DataError, match=r"there is no run .*nowhere"):
        find_runs([str(tmp_path / "nowhere")])


# ---- refusals -------------------------------------------------------------------------------


def test_a_folder_without_provenance(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path} is no training run \(found: no provenance"):
        read_run("a", tmp_path)


@pytest.mark.parametrize("file", ["drafter/provenance.json", "drafter/config.json"])
def test_damaged_json_is_named(tmp_path: Path, file: str) -> None:
    folder = write_run(tmp_path / "a", checkpoint={})
    (folder / file).write_text('{"config": ')
    with pytest.raises(DataError, match=rf"{file} is damaged: not valid JSON \(found: .+Copy it"):
        read_run("a", folder)


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", log=[])
    (folder / "train_log.jsonl").write_text("{\n{}\n")
    with pytest.raises(DataError, match=r"train_log\.jsonl line 1 is not a JSON object"):
        read_run("a", folder)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"config": {"drafter": {}}}, r"config\.target"),
        ({"config": None}, "config"),
        ({"training": {"step": 1}}, r"training\.elapsed_s"),
    ],
)
def test_a_provenance_of_another_make_is_refused(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    folder = write_run(tmp_path / "a")
    path = folder / "drafter" / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=rf"provenance\.json: {key} cannot be used \(found: "):
        read_run("a", folder)


def test_a_log_line_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    line = log_line(400, 1.8)
    del line["minutes"]
    folder = write_run(tmp_path / "a", log=[line])
    with pytest.raises(DataError, match=r"train_log\.jsonl: minutes cannot be used"):
        read_run("a", folder)


@pytest.mark.parametrize("held_out", [None, {}, {"accepted_length": None}])
def test_a_run_without_a_held_out_measure(tmp_path: Path, held_out: dict[str, Any] | None) -> None:
    folder = write_run(tmp_path / "a", held_out=held_out, log=[log_line(400, 1.8, "train")])
    match = r"provenance\.json tells of no held-out measure .* up to step 400 .*Finish the run"
    with pytest.raises(DataError, match=match):
        read_run("a", folder)
