"""Compiling for the machine: once, whole, and with something to fall back on."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspark.native import build

TRY = """
import warnings, torch
from dspark import native
from dspark.models.layers import PackedLinear
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    linear = PackedLinear(torch.eye(4))
    PackedLinear(torch.eye(4))
with torch.inference_mode():
    print(linear(torch.arange(4.0)[None])[0].tolist(), linear.packed is not None)
print(native.describe())
print(len(seen), *(warning.message for warning in seen))
"""


def run(**env: str) -> list[str]:
    """What a fresh process prints when it packs and multiplies."""
    done = subprocess.run(
        [sys.executable, "-c", TRY],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout.splitlines()


needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler here")


@needs_compiler
def test_two_processes_at_once_compile_into_an_empty_cache(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(run, DSPARK_CACHE=str(tmp_path)) for _ in range(2)]
    for job in jobs:
        assert job.result() == ["[0.0, 1.0, 2.0, 3.0] True", "ready", "0"]
    assert [path.suffix for path in (tmp_path / "native").iterdir()] == [".so"]


def test_left_out_by_choice(tmp_path: Path) -> None:
    lines = run(DSPARK_CACHE=str(tmp_path), DSPARK_NATIVE="0")
    assert lines == ["[0.0, 1.0, 2.0, 3.0] False", "left out (DSPARK_NATIVE=0)", "0"]
    assert not list(tmp_path.iterdir())


def test_no_compiler_needs_no_word(tmp_path: Path) -> None:
    lines = run(DSPARK_CACHE=str(tmp_path), PATH=str(tmp_path), CXX="")
    assert lines[0] == "[0.0, 1.0, 2.0, 3.0] False"
    assert lines[1:] == ["no C++ compiler found; PyTorch's operations serve", "0"]


def test_a_compiler_that_fails_is_named_once(tmp_path: Path) -> None:
    broken = tmp_path / "broken-compiler"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such flag" >&2\nexit 1\n'
    )
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    lines = run(DSPARK_CACHE=str(tmp_path / "cache"), CXX=str(broken))
    assert lines[0] == "[0.0, 1.0, 2.0, 3.0] False"
    assert "cannot be compiled" in lines[1]
    assert lines[2].startswith("1 The processor kernels could not be compiled with")
    assert "no such flag" in lines[2]
    assert not list((tmp_path / "cache" / "native").iterdir())


@needs_compiler
def test_another_source_is_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    first = build.digest(compiler)
    assert build.digest(compiler) == first
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    assert build.digest(compiler) != first
