"""`dspark store`: size, folder, resume, and refusals in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dspark.cli import main as cli
from dspark.cli.store import _size
from tiny import tiny_home

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_home(tmp_path_factory.mktemp("home"), count=8)


@pytest.fixture
def run(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        target = "{home / "target"}"
        out = "{tmp_path / "out"}"
        data.responses = ["{home / "answers.jsonl"}"]
        data.held_out_share = 0.3
        drafter.markov_rank = 8
        run.dtype = "float32"
        run.steps = 2
        """
    )

    def store(*argv: str, verb: str = "store") -> tuple[int, str, str]:
        code = cli.main([verb, "--config", str(recipe), *argv])
        out, err = capfd.readouterr()
        return code, out, err

    return store


def test_estimate_write_and_train(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    code, out, _ = run("--out", str(folder), "--estimate")
    assert code == 0
    guess = re.fullmatch(r"(\d+) sequences, about ([\d.]+) MiB in 1 files\n", out)
    assert guess
    assert not folder.exists()
    code, out, err = run("--out", str(folder))
    assert code == 0
    told = re.fullmatch(rf"{folder}: (\d+) sequences, ([\d.]+) MiB in 1 files\n", out)
    assert told
    assert told[1] == guess[1]
    assert float(told[2]) == pytest.approx(float(guess[2]), abs=0.15)
    assert f"{told[1]} of {told[1]} sequences" in err
    index = json.loads((folder / "store.json").read_text())
    assert len(index["sequences"]) == int(told[1])
    assert index["provenance"]["command"] == "dspark store"
    assert run("--out", str(folder))[0] == 0  # nothing left to do
    assert run("--set", f"data.store={folder}", verb="train")[0] == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--set", "drafter.target_layer_ids=[9]"], ["[9]", "0 to 6"]),
        (["--set", "nothing=1"], ["unknown key 'nothing'"]),
        (["--set", "target=nowhere/at/all"], ["nowhere/at/all"]),
    ],
)
def test_refusals(run: Run, tmp_path: Path, argv: list[str], words: list[str]) -> None:
    code, out, err = run("--out", str(tmp_path / "store"), *argv)
    assert (code, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("dspark: error: ")
    for word in words:
        assert word in last
    assert not (tmp_path / "store").exists()


def test_a_store_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--set", f"data.store={tmp_path / 'none'}", verb="train")
    assert code == 2
    assert "holds no finished store (found: no store.json)" in err
    assert not (tmp_path / "out").exists()


def test_sizes_in_words() -> None:
    assert _size(3 * 2**20) == "3.0 MiB"
    assert _size(5 * 2**29) == "2.50 GiB"
