"""`dspark bench`: the figures file, and refusals in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dspark.artifacts import read_artifact
from dspark.cli import main as cli
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


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["head", "--drafter", "none"], "no head without a drafter"),
        (["head", "--drafter", "nowhere"], "no drafter nowhere"),
        (["head", "--rounds", "1"], "--rounds"),
        (["heads"], "heads"),
    ],
)
def test_mistakes(argv: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *argv]) == 2
    err = capfd.readouterr().err
    assert words in err
    assert len(err.strip().splitlines()) == 1
