"""`dspark profile`, and the adaptive policies that live on its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from tiny import tiny_drafter, tiny_home

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--users", "2", "--context", "12", "--repeats", "1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tiny_home(tmp_path_factory.mktemp("home"), count=16)
    tiny_drafter(home)
    return home


@pytest.fixture
def run(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "cache"))

    def verb(name: str, *argv: str) -> tuple[int, str, str]:
        line = [name, *argv, "--target", str(home / "target"), "--dtype", "float32"]
        if "--drafter" not in argv:
            line += ["--drafter", str(home / "run" / "drafter")]
        code = cli.main(line)
        out, err = capfd.readouterr()
        return code, out, err

    return verb


def test_table_picture_and_a_policy_that_uses_them(run: Run, tmp_path: Path) -> None:
    file, plot = tmp_path / "r" / "cost.json", tmp_path / "r" / "cost.png"
    code, out, _ = run("profile", *SMALL, "--json", str(file), "--plot", str(plot))
    assert code == 0
    assert "batch tokens" in out
    found = read_artifact(file, "dspark.cost/1")
    assert found["context"] == 12
    assert plot.read_bytes().startswith(b"\x89PNG")
    texts = []
    for policy in ("off", "causal", "pipelined"):
        code, out, err = run(
            "generate", "count 3", "--policy", policy, "--json", "--max-new-tokens", "12"
        )
        assert code == 0, err
        texts.append(json.loads(out)["text"])
    assert texts[0] == texts[1] == texts[2]


def test_an_adaptive_policy_without_a_table_is_refused(run: Run) -> None:
    code, _, err = run("generate", "count 3", "--policy", "causal")
    assert code == 2
    assert "no cost table" in err
    assert "dspark profile" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--drafter", "none"), "nothing to schedule"),
        (("--context", "1000000"), "too long for the target"),
        (("--users", "0"), "--users"),
    ],
)
def test_mistakes(run: Run, argv: tuple[str, ...], words: str) -> None:
    code, _, err = run("profile", *argv)
    assert code == 2
    assert words in err
