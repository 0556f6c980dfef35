"""Texts, losses and result files are as `recorded.json` has them; `record.py` says how to renew it.

A failure after a change that should change nothing is a defect of the change.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
KEPT: dict[str, Any] = json.loads((HERE / "recorded.json").read_text())


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same recording of today's code, in a process that sets its own kernels and threads."""
    path = tmp_path_factory.mktemp("recorded") / "now.json"
    done = subprocess.run(
        [sys.executable, HERE / "record.py", path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_same_cases_are_recorded(now: dict[str, Any]) -> None:
    assert {name: list(now[name]) for name in ("answers", "training", "eval")} == {
        name: list(KEPT[name]) for name in ("answers", "training", "eval")
    }


@pytest.mark.parametrize("case", KEPT["answers"])
def test_answers_and_rounds(now: dict[str, Any], case: str) -> None:
    kept, found = KEPT["answers"][case], now["answers"][case]
    assert found["texts"] == kept["texts"]
    assert found["rounds"] == kept["rounds"]
    assert len(found.get("logprobs", [])) == len(kept.get("logprobs", []))
    for row, kept_row in zip(found.get("logprobs", []), kept.get("logprobs", []), strict=True):
        assert row == pytest.approx(kept_row, abs=3e-4)


@pytest.mark.parametrize("run", [name for name in KEPT["training"] if name != "files"])
def test_losses(now: dict[str, Any], run: str) -> None:
    kept, found = KEPT["training"][run], now["training"][run]
    assert found["terms"] == kept["terms"]
    assert len(found["rows"]) == len(kept["rows"])
    for row, kept_row in zip(found["rows"], kept["rows"], strict=True):
        assert row == pytest.approx(kept_row, rel=2e-6, abs=2e-5)
    assert found["accepted_length"] == pytest.approx(kept["accepted_length"], abs=1e-3)


def test_files_of_a_training_run(now: dict[str, Any]) -> None:
    assert now["training"]["files"] == KEPT["training"]["files"]


def test_files_of_an_evaluation(now: dict[str, Any]) -> None:
    assert now["eval"] == KEPT["eval"]
