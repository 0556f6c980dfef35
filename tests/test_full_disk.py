"""A disk that is full: one line, the last whole state kept, and another run goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dspark.artifacts import read_jsonl
from dspark.cli import main as cli
from dspark.drafters.checkpoint import load_drafter
from dspark.targets.target import load_target
from dspark.training.board import Board
from tiny import home_with_drafter

Run = Callable[..., tuple[int, str, str]]


class Disk:
    """A small disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"

    def fill(self) -> None:
        """Take what room is left."""
        with self.filler.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(b"\0" * size) == size:
                        pass
                except OSError:
                    continue

    def make_room(self) -> None:
        self.filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = home_with_drafter(tmp_path_factory.mktemp("home"))
    (home / "recipe.toml").write_text(
        f"""
        target = "{home / "target"}"
        out = "{home / "out"}"
        data.responses = ["{home / "answers.jsonl"}"]
        data.held_out_share = 0.3
        drafter = {{block_size = 4, num_layers = 1, markov_rank = 8, intermediate_size = 96}}
        run = {{dtype = "float32", steps = 4, sequences_per_step = 4, log_every = 1}}
        """
    )
    return home


@pytest.fixture
def run(home: Path, tmp_cache: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def verb(*argv: str) -> tuple[int, str, str]:
        line = [*argv]
        if argv[0] not in ("train", "store", "compare"):
            line += ["--target", str(home / "target"), "--dtype", "float32"]
            line += ["--max-new-tokens", "8"]
        code = cli.main(line)
        out, err = capfd.readouterr()
        return code, out, err

    return verb


def assert_said(found: tuple[int, str, str]) -> None:
    code, _, err = found
    assert code == 2, err
    last = err.rstrip().splitlines()[-1]
    assert last.startswith("dspark: error: ")
    assert "No space left on device" in last
    assert "Traceback" not in err


def test_train(run: Run, home: Path, disk: Disk) -> None:
    out = disk.folder / "out"
    line = ["train", "--config", str(home / "recipe.toml"), "--set", f"out={out}"]
    assert run(*line)[0] == 0
    disk.fill()
    found = run(*line, "--set", "run.steps=8")
    assert_said(found)
    assert json.loads((out / "state" / "counters.json").read_text())["step"] == 4
    assert load_drafter(out / "drafter", load_target(home / "target", "float32"))
    disk.make_room()
    assert run(*line, "--set", "run.steps=8")[0] == 0
    steps = [row["step"] for row in read_jsonl(out / "train_log.jsonl") if row["kind"] == "train"]
    assert steps == list(range(1, 9))


def test_tensorboard_is_left_out(disk: Disk) -> None:
    pytest.importorskip("tensorboard")
    said: list[str] = []
    board = Board(disk.folder / "board", said.append)
    record = {"kind": "train", "step": 1, "loss": 0.5, "acceptance": [0.5, 0.25]}
    board.add(record)
    assert not said
    disk.fill()
    for step in range(2, 200):
        board.add(record | {"step": step})
    board.close()
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert said[0].endswith("training goes on without it")


@pytest.mark.parametrize("verb", ["regenerate", "eval --trace", "eval --json", "store"])
def test_what_is_added_to(verb: str, run: Run, home: Path, disk: Disk) -> None:
    """Fails on the full disk, and then does all the work in the same place."""
    out = disk.folder / "out.json"
    line = {
        "regenerate": ["--prompts", str(home / "prompts.jsonl"), "--out", str(out)],
        "store": ["--config", str(home / "recipe.toml"), "--out", str(disk.folder / "store")],
    }.get(verb) or [
        *("--data", str(home / "prompts.jsonl"), "--drafter", str(home / "drafter")),
        *(verb.split()[1], str(out)),
    ]
    disk.fill()
    found = run(verb.split()[0], *line)
    if verb == "store" and "is too small for the store" in found[2]:  # it looks before it writes
        assert found[0] == 2
    else:
        assert_said(found)
    assert not out.exists() or not out.stat().st_size
    disk.make_room()
    assert run(verb.split()[0], *line)[0] == 0
    if verb == "regenerate":
        assert len(list(read_jsonl(out))) == 24


def test_calibrate_goes_on_without_its_part(
    run: Run, home: Path, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = Path(shutil.copytree(home / "drafter", tmp_path / "drafter"))
    line = ["calibrate", "--data", str(home / "prompts.jsonl"), "--drafter", str(drafter)]
    monkeypatch.setenv("DSPARK_CACHE", str(disk.folder / "cache"))
    disk.fill()
    with pytest.warns(UserWarning, match="No space left .*an interrupted run starts anew") as said:
        code, _, err = run(*line)
    assert code == 0, err
    assert len(said) == 1
    assert (drafter / "calibration.json").is_file()


def test_a_calibration_table_that_finds_no_room(run: Run, home: Path, disk: Disk) -> None:
    drafter = Path(shutil.copytree(home / "drafter", disk.folder / "drafter"))
    line = ["calibrate", "--data", str(home / "prompts.jsonl"), "--drafter", str(drafter)]
    assert run(*line)[0] == 0
    before = (drafter / "calibration.json").read_bytes()
    disk.fill()
    assert_said(run(*line, "--temperature", "0.5"))
    assert (drafter / "calibration.json").read_bytes() == before
    disk.make_room()
    assert run(*line, "--temperature", "0.5")[0] == 0


def test_a_full_cache_ends_no_answer(
    run: Run, home: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPARK_CACHE", str(disk.folder / "cache"))
    disk.fill()
    code, out, err = run("generate", "hello", "--drafter", str(home / "drafter"))
    assert code == 0, err
    assert out
    assert "Traceback" not in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_result_file_that_finds_no_room(run: Run, home: Path) -> None:
    line = ["eval", "--data", str(home / "prompts.jsonl"), "--drafter", str(home / "drafter")]
    assert_said(run(*line, "--json", "/dev/full"))
