"""`dspark audit`: exit codes, the findings file, refusals."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from dspark.evaluation import audit
from tiny import tiny_drafter, tiny_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tiny_home(tmp_path_factory.mktemp("home"), count=16)
    tiny_drafter(home)
    return home


def line(home: Path, *more: str) -> list[str]:
    models = ["--target", str(home / "target"), "--drafter", str(home / "run" / "drafter")]
    return ["audit", *models, "--dtype", "float32", "--max-new-tokens", "8", *more]


def test_findings(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r" / "audit.json"
    code = cli.main(line(home, "--limit", "3", "--samples", "1", "--json", str(file)))
    found = read_artifact(file, audit.SCHEMA)
    assert code == {"lossless": 0, "undecided": 3}[found["verdict"]]
    assert found["greedy"]["identical"] == found["seeds"]["identical"] == 1
    assert found["verdict"] in capfd.readouterr().out


@pytest.mark.parametrize(("verdict", "code"), [("lossless", 0), ("lossy", 1), ("undecided", 3)])
def test_exit_codes(
    home: Path,
    verdict: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real = audit.run

    def run(*args: Any, **more: Any) -> dict[str, Any]:
        return real(*args, **more) | {"verdict": verdict}

    monkeypatch.setattr(audit, "run", run)
    assert cli.main(line(home, "--limit", "1", "--samples", "1")) == code
    assert verdict in capfd.readouterr().out


def test_without_a_drafter_there_is_nothing_to_check(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", "--target", str(home / "target"), "--drafter", "none"]) == 2
    assert "nothing to audit" in capfd.readouterr().err


def test_ctrl_c_gives_the_answer_so_far(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real, file = audit.Pace.begin, tmp_path / "audit.json"

    def begin(self: Any, part: str, planned: int, share: float) -> None:
        real(self, part, planned, share)
        if part == "distribution":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(audit.Pace, "begin", begin)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells' jobs ignore it
    try:
        code = cli.main(line(home, "--limit", "2", "--samples", "1", "--json", str(file)))
    finally:
        signal.signal(signal.SIGINT, before)
    found = read_artifact(file, audit.SCHEMA)
    assert code == 3
    assert found["stopped"]
    assert found["greedy"]["prompts"] == 2
    assert found["distribution"]["tokens"] == found["seeds"]["requests"] == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "stopped after" in said
    assert "needs" in said


def test_a_time_that_is_none(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line(home, "--seconds", "0")) == 2
    assert "--seconds" in capfd.readouterr().err
