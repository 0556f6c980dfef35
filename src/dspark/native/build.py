"""Compiles the kernels for this processor, once, and loads them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

from dspark import artifacts

HERE = Path(__file__).parent
SOURCES = ("linear.cpp", "attention.cpp", "rowwise.cpp", "choice.cpp", "layer.cpp")
HEADERS = ("kernels.h", "vectors.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
SWITCH = "DSPARK_NATIVE"  # 0 leaves the kernels out


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had (with a warning, if unexpected)."""
    if os.environ.get(SWITCH) == "0":
        return None
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"The processor kernels could not be compiled with {compiler}, so decoding is slower: "
            f"{' '.join(output.split())[:300]} ({SWITCH}=0 leaves them out)",
            stacklevel=2,
        )
        return None


def find_compiler() -> str | None:
    """A C++ compiler: `$CXX`, else g++ or clang++ on the path."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    return None


def compiled(compiler: str) -> Path:
    """The shared library for this processor in the cache folder, compiled where it is missing.

    Raises:
        OSError: the cache folder cannot be written, or the compiler not run.
        subprocess.SubprocessError: it failed or took too long.
    """
    folder = artifacts.cache_dir() / "native"
    path = folder / f"{digest(compiler)}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / path.name
        sources = [str(HERE / name) for name in SOURCES]
        subprocess.run(
            [compiler, *FLAGS, *sources, "-o", str(made)],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
        made.replace(path)  # whole or not at all: another process may look for it
    return path


def digest(compiler: str) -> str:
    """What the library depends on: sources, flags, compiler, the processor's instructions."""
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    parts = [*FLAGS, compiler, version, artifacts.cpu_model(), _instructions()]
    parts += [(HERE / name).read_text(encoding="utf-8") for name in SOURCES + HEADERS]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def _instructions() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.lower().startswith(("flags", "feat"))), "")


def describe() -> str:
    """What `dspark doctor` says of the kernels."""
    if os.environ.get(SWITCH) == "0":
        return f"left out ({SWITCH}=0)"
    if find_compiler() is None:
        return "no C++ compiler found; PyTorch's operations serve"
    return "ready" if library() is not None else "cannot be compiled; PyTorch's operations serve"
