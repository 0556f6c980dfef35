"""`dspark bench`: the figures file, and refusals in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from fakes import write_jsonl
from tiny import tiny_drafter, tiny_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tiny_home(tmp_path_factory.mktemp("home"), count=16)
    tiny_drafter(home)
    return home


def test_head(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r" / "head.json"
    line = ["bench", "head", "--target", str(home / "target"), "--rounds", "5"]
    line += ["--drafter", str(home / "run" / "drafter"), "--dtype", "float32"]
    assert cli.main([*line, "--json", str(file)]) == 0
    assert "vanilla" in capfd.readouterr().out
    found = read_artifact(file, "dspark.head_cost/1")
    (row,) = found["rows"]
    assert row["drafter"] == "drafter"
    assert row["rounds"] >= 5
    assert str(home) not in file.read_text()


def test_load(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r" / "load.json"
    line = ["bench", "load", "--target", str(home / "target"), "--dtype", "float32"]
    line += ["--drafter", str(home / "run" / "drafter"), "--users", "1,2", "--rates", "50"]
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "count 3"}])
    line += ["--data", str(prompts), "--seconds", "0.1", "--slice", "0.05", "--max-new-tokens", "6"]
    assert cli.main([*line, "--policies", "off,fixed:2", "--json", str(file)]) == 0
    assert "2 users" in capfd.readouterr().out
    rows = read_artifact(file, "dspark.load/1")["rows"]
    assert [(r["users"], r["policy"]) for r in rows] == [
        (users, policy) for users in (1, 2, 0) for policy in ("off", "fixed:2")
    ]
    assert cli.main([*line, "--policies", "fixd:2"]) == 2
    assert "Unknown policy" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["head", "--drafter", "none"], "no head without a drafter"),
        (["head", "--drafter", "nowhere"], "no drafter nowhere"),
        (["head", "--rounds", "1"], "--rounds"),
        (["heads"], "heads"),
        (["load", "--users", "0"], "whole numbers above 0"),
        (["load", "--users", "1,x"], "whole numbers above 0"),
        (["load", "--users", "", "--rates", ""], "nothing to measure"),
        (["load", "--rates", "-1"], "numbers above 0"),
    ],
)
def test_mistakes(argv: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *argv]) == 2
    err = capfd.readouterr().err
    assert words in err
    assert len(err.strip().splitlines()) == 1
