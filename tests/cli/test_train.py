"""`dspark train`: recipe file, output, resume, profile, and every refusal in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.artifacts import read_jsonl
from dspark.cli import main as cli
from dspark.cli.train import _Display
from dspark.config import TrainConfig
from dspark.drafters.checkpoint import load_drafter
from dspark.targets.target import load_target
from tiny import tiny_home, tiny_recipe

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_home(tmp_path_factory.mktemp("home"), count=16)


@pytest.fixture
def recipe(home: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"""
        target = "{home / "target"}"
        out = "{tmp_path / "out"}"
        [data]
        responses = ["{home / "answers.jsonl"}"]
        held_out_share = 0.3
        [drafter]
        block_size = 4
        num_layers = 1
        markov_rank = 8
        [run]
        steps = 12
        sequences_per_step = 4
        anchors_per_sequence = 8
        log_every = 4
        dtype = "float32"
        """
    )
    return path


@pytest.fixture
def run(recipe: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def train(*argv: str, config: Path | None = None) -> tuple[int, str, str]:
        code = cli.main(["train", "--config", str(config or recipe), *argv])
        out, err = capfd.readouterr()
        return code, out, err

    return train


def steps(out: Path) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in read_jsonl(out / "train_log.jsonl")]


def test_train_and_train_longer(run: Run, home: Path, tmp_path: Path) -> None:
    code, out, err = run()
    assert code == 0
    assert out.startswith(f"drafter in {tmp_path / 'out' / 'drafter'}, held-out accepted_length ")
    assert "anchors/s" in err
    assert "accepted_length" in err
    target = load_target(home / "target", "float32")
    assert load_drafter(tmp_path / "out" / "drafter", target).config.block_size == 4
    once = [("train", 4), ("train", 8), ("train", 12), ("held_out", 12)]
    assert steps(tmp_path / "out") == once

    code, out, _ = run("--set", "run.steps=16", "--json")
    assert code == 0
    measured = json.loads(out)
    assert out.count("\n") == 1
    assert {"loss", "acceptance", "accepted_length"} <= measured.keys()
    assert steps(tmp_path / "out") == [*once, ("train", 16), ("held_out", 16)]


def test_going_on_from_a_drafter(run: Run, tmp_path: Path) -> None:
    assert run()[0] == 0
    more = ("--set", f"out={tmp_path / 'more'}", "--set", "drafter.num_layers=2")
    code, out, _ = run("--from", str(tmp_path / "out"), *more)
    assert code == 0
    assert f"drafter in {tmp_path / 'more' / 'drafter'}" in out
    told = json.loads((tmp_path / "more" / "drafter" / "provenance.json").read_text())
    assert told["start"]["new"] == ["1 more layers, each the identity"]
    assert told["config"]["drafter"]["start"] == "out"
    # Taken up again it needs to be told nothing; another drafter is refused.
    assert run(*more, "--set", "run.steps=14")[0] == 0
    code, out, err = run("--from", str(tmp_path / "more"), *more)
    assert (code, out) == (2, "")
    assert "drafter.start was" in err
    few = ("--set", f"out={tmp_path / 'few'}", "--set", "drafter.markov_rank=4")
    code, out, err = run("--from", str(tmp_path / "out"), *few)
    assert (code, out) == (2, "")
    assert "drafter.markov_rank (found: recipe 4, drafter to start from 8)" in err


def test_tensorboard(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run()[0] == 0
    board = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    board.Reload()
    names = set(board.Tags()["scalars"])
    assert {"train/loss", "train/slot_1", "train/slot_4", "held_out/accepted_length"} <= names
    assert [event.step for event in board.Scalars("train/loss")] == [4, 8, 12]


def test_without_tensorboard(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    assert run()[0] == 0
    assert not (tmp_path / "out" / "tensorboard").exists()
    assert steps(tmp_path / "out")


def test_profile(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--profile", "--profile-steps", "2")
    assert code == 0
    assert "anchors/s with states in memory" in out
    for phase in ("target states", "forward and loss", "backward", "optimiser"):
        assert phase in out
    code, out, _ = run("--profile", "--profile-steps", "2", "--json")
    found = json.loads(out)
    assert found["anchors_per_s"] > 0
    assert found["schema"] == "dspark.train_profile/1"
    assert found["provenance"]["command"] == "dspark train --profile"
    assert list(found["provenance"]["inputs"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--set", "drafter.block_sise=5"], ["unknown key 'drafter.block_sise'", "block_size"]),
        (["--set", "drafter.block_size=0"], ["drafter.block_size", "found: 0"]),
        (["--set", "drafter.kind=eagle9"], ["Unknown drafter kind", "eagle9"]),
        (["--set", "drafter.target_layer_ids=[1,7]"], ["[1, 7]", "0 to 6"]),
        (["--set", "drafter.mask_token_id=2"], ["mask"]),
        (["--set", "drafter.draft_vocab_size=0", "--set", "nothing"], ["--set takes KEY=VALUE"]),
        (["--set", "target=nowhere/at/all"], ["not a model folder", "nowhere/at/all"]),
        (["--set", 'data.responses=["missing.jsonl"]'], ["'missing.jsonl' does not exist"]),
        (["--set", "data.max_length=16"], ["max_length 16"]),
        (["--set", "run.minutes=none", "--set", "run.steps=none"], ["the run never ends"]),
        (["--set", "run.dtype=float8"], ["run.dtype"]),
        (["--profile-steps", "-3"], ["--profile-steps"]),
    ],
)
def test_refusals(run: Run, tmp_path: Path, argv: list[str], words: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("dspark: error: ")
    assert err.count("dspark: error") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in last
    assert not (tmp_path / "out").exists()  # nothing half-written


def test_a_recipe_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run(config=tmp_path / "missing.toml")
    assert code == 2
    assert "cannot read configuration file" in err


def test_out_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    code, out, err = run("--set", f"out={tmp_path / 'file' / 'below'}")
    assert (code, out) == (2, "")
    assert "dspark: error: cannot write" in err
    assert "Traceback" not in err
    assert (tmp_path / "file").read_text() == "kept"


def test_another_recipe_in_the_same_folder(run: Run) -> None:
    assert run()[0] == 0
    code, out, err = run("--set", "optim.lr=0.5")
    assert (code, out) == (2, "")
    assert "holds a run of another recipe (found: optim.lr was 0.001, is 0.5)" in err


def test_ctrl_c_ends_cleanly_and_a_second_run_resumes(run: Run, recipe: Path) -> None:
    out = recipe.parent / "out"
    line = [sys.executable, "-m", "dspark.cli.main", "train", "--config", str(recipe)]
    line += ["--set", "run.steps=100000", "--set", "run.minutes=60"]
    child = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while not (out / "train_log.jsonl").exists() and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=300)
    finally:
        child.kill()
    assert child.returncode == 130, stderr
    assert stdout == ""
    assert stderr.rstrip().endswith("dspark: interrupted; finished work is kept")
    assert "Traceback" not in stderr
    done = json.loads((out / "state" / "counters.json").read_text())["step"]
    assert done >= 4
    code, _, _ = run("--set", f"run.steps={done + 4}")
    assert code == 0
    assert steps(out)[-1] == ("held_out", done + 4)


def test_what_the_display_says(home: Path, tmp_path: Path) -> None:
    """Held-out measures stand above the bar; a measure of nothing does no harm."""
    config: TrainConfig = tiny_recipe(home, tmp_path / "out")
    record: dict[str, Any] = {"kind": "held_out", "minutes": 1.25, "step": 7}
    with _Display(config) as display:
        display.console.file = (tmp_path / "screen").open("w")
        display.bar.live.console.file = display.console.file
        display.show(record | {"accepted_length": 2.5, "acceptance": [0.75, 0.5]})
        display.show(record)
    display.console.file.close()
    text = (tmp_path / "screen").read_text()
    assert "1.2 min, step 7, held out: accepted_length 2.50  slots 0.75 0.50" in text
