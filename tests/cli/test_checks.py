"""Command lines that no run could use: one line, exit code 2, and torch is not imported."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bad_lines import LINES, WITH_TORCH, places

# Runs command lines in one interpreter. Whoever imports torch is told that there is none, in words
# that no verb catches, so that the next line finds things as the first did.
RUNNER = """
import contextlib, io, json, sys, traceback

class Torch(BaseException):
    pass

class Finder:
    def find_spec(self, name, path=None, target=None):
        if BLOCKED and name in ("torch", "transformers"):
            raise Torch(name)

lines, BLOCKED = json.loads(sys.stdin.read())
sys.meta_path.insert(0, Finder())
from dspark.cli.main import main
found = []
for line in lines:
    out, err = io.StringIO(), io.StringIO()
    sys.stdin = io.StringIO("")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(line)
        except Torch as error:
            code = f"imported {error}"
        except BaseException as error:
            code = traceback.format_exc()
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def run_all(folder: Path, text: str, blocked: bool) -> list[tuple[str, Any, str, str]]:
    """Each line of a text with its exit code (or what came instead), output and errors."""
    there = places(folder)
    lines = [line for line in text.strip().splitlines() if line]
    argv = [[word.format(**there) for word in shlex.split(line)] for line in lines]
    env = os.environ | {"DSPARK_CACHE": str(folder / "cache"), "DSPARK_DATA": str(folder / "data")}
    env |= {"DSPARK_KERNELS": "torch", "COLUMNS": "80"}  # an empty cache has no kernels
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([argv, blocked]),
        capture_output=True,
        text=True,
        env=env,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return [(line, *each) for line, each in zip(lines, found, strict=True)]


@pytest.mark.parametrize(("text", "blocked"), [(LINES, True), (WITH_TORCH, False)])
def test_bad_command_lines(tmp_path: Path, text: str, blocked: bool) -> None:
    wrong = []
    for line, code, out, err in run_all(tmp_path, text, blocked):
        one_line = err.startswith("dspark: error: ") and err.count("\n") == 1
        help_alone = line == "bench" and "Usage" in out + err  # a verb that is none yet
        if code != 2 or not (one_line or help_alone) or "Traceback" in err:
            wrong.append((line, code, err))
    assert wrong == []
    assert not (tmp_path / "cache" / "targets").exists(), "nothing was fetched"
    assert not (tmp_path / "new.jsonl").exists()


def test_what_runs_does_import_torch(tmp_path: Path) -> None:
    """Else the test above would see nothing."""
    ((_, code, _, err),) = run_all(tmp_path, "generate hi --drafter none", True)
    assert code == "imported torch", err


def test_options_have_their_own_names(tmp_path: Path) -> None:
    lines = "eval --data {rows} --json {same} --trace {same}\nbench load --slice inf"
    (_, _, _, outputs), (_, _, _, number) = run_all(tmp_path, lines, True)
    assert "--json and --trace name the same file" in outputs
    assert "--slice is no finite number (found: inf)" in number


def test_there_are_many() -> None:
    lines = LINES.strip().splitlines()
    assert len(lines) > 100
    assert len(set(lines)) == len(lines)


def test_choices_are_those_of_the_loaders() -> None:
    """They are written down again where torch may not be imported."""
    from dspark.cli import checks
    from dspark.targets import hf_loading, weights

    assert set(checks.DTYPES) == {"auto", *hf_loading.DTYPES}
    assert checks.WEIGHTS == weights.WEIGHTS
