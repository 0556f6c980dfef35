"""The examples run as a newcomer would run them, and stay short."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_short_and_compiles(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    compile(text, str(path), "exec")


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_train_tiny_runs(tmp_path: Path) -> None:
    out = run("train_tiny.py", str(tmp_path))
    last = out.splitlines()[-1]
    assert "same text as without drafts: True" in last
    length = float(re.search(r"accepted_length ([\d.]+)", last)[1])  # type: ignore[index]
    assert length > 1.2  # rounding differs between machines; 1 is a drafter that learnt nothing
    assert (tmp_path / "run" / "drafter" / "model.safetensors").is_file()


def run_here(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """As `run`, without loading torch and transformers once more."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capfd.readouterr().out


def test_generate_runs(
    default_target: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = run_here("generate.py", monkeypatch, capfd, "Name three fruits.")
    assert re.search(r"\d+ tokens, \d+ tokens/s, finished by (stop|length)", out)


def test_stream_async_runs(
    default_target: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = run_here("stream_async.py", monkeypatch, capfd)
    ends = re.findall(r"^(\d): \d+ tokens, finished by (?:stop|length)$", out, re.MULTILINE)
    assert sorted(ends) == ["1", "2", "3"]
