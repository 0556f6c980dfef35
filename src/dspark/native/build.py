"""Finds the compiled kernels, or compiles them once, and loads them."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from dspark import artifacts
from dspark.native import compiling

# Another process that compiles is waited for as long as compiling may take.
LOCK_S = 2.0 * compiling.TIMEOUT_S


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had (with a warning, if unexpected)."""
    if compiling.machine() not in compiling.LEVELS:
        return None
    with suppress(OSError):
        return load(compiling.shipped())
    compiler = compiling.find_compiler()
    if compiler is None:
        return None
    try:
        return _kept(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        _warn(
            f"The processor kernels could not be compiled with {compiler}, so decoding is slower: "
            f"{compiling.reason(error)}"
        )
        return None


def load(path: Path) -> ctypes.CDLL:
    """A library of kernels.

    Raises:
        OSError: it is missing, half-written, for another processor, or something else.
    """
    expected = path.with_suffix(compiling.CHECK).read_text(encoding="utf-8")
    if compiling.content_hash(path) != expected or b"dspark_level" not in path.read_bytes():
        raise OSError(f"{path} is damaged, or no library of kernels")
    return ctypes.CDLL(str(path))


def _kept(compiler: str) -> ctypes.CDLL:
    """The library in the cache folder, compiled where it is missing or damaged."""
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    folder = artifacts.cache_dir() / "native"
    path = folder / f"{compiling.machine()}-{compiling.digest(compiler, version)}.so"
    with suppress(OSError):
        return load(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"), timeout=LOCK_S)
        lock.acquire()
    except (OSError, Timeout) as error:
        _warn(f"The processor kernels are compiled for this run alone: {error}")
        with tempfile.TemporaryDirectory() as work:
            own = Path(work) / path.name
            compiling.compile_library(compiler, own)
            return load(own)
    try:
        with suppress(OSError):  # another process was faster
            return load(path)
        compiling.compile_library(compiler, path)
        return load(path)
    finally:
        lock.release()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
