"""Finds the compiled kernels, or compiles them once, and loads them."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import subprocess
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

from dspark import artifacts
from dspark.errors import DSparkError
from dspark.native import compiling

# Another process that compiles is waited for as long as compiling may take.
LOCK_S = 2.0 * compiling.TIMEOUT_S


class Damaged(OSError):
    """A library lies there, but not the one that was made."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had (with a warning, if unexpected)."""
    if compiling.machine() not in compiling.LEVELS:
        return None
    wrong = ""
    try:
        return load(compiling.shipped())
    except Damaged as error:
        wrong = str(error)
    except OSError:  # none came with the package, or this system cannot run it
        pass
    compiler = compiling.find_compiler()
    if compiler is None:
        if wrong:
            _warn(f"{wrong}, and there is no C++ compiler to make it again. Install dspark again")
        return None
    try:
        return _kept(compiler, wrong)
    except (OSError, subprocess.SubprocessError) as error:
        _warn(
            f"The processor kernels could not be compiled with {compiler}, so decoding is slower: "
            f"{compiling.reason(error)}"
        )
        return None


def load(path: Path) -> ctypes.CDLL:
    """A library of kernels. It is compared with the hash beside it before it is opened.

    Raises:
        FileNotFoundError: it is missing.
        Damaged: it is half-written, empty or something else, or its hash is missing.
        OSError: it is whole, but this system does not run it.
    """
    content = path.read_bytes()
    try:
        expected = path.with_suffix(compiling.CHECK).read_text(encoding="utf-8")
    except (OSError, ValueError):
        expected = ""
    if hashlib.sha256(content).hexdigest() != expected or b"dspark_level" not in content:
        raise Damaged(f"The kernel library {path} is damaged")
    return ctypes.CDLL(str(path))


def _kept(compiler: str, wrong: str) -> ctypes.CDLL:
    """The library in the cache folder, compiled where it is missing or damaged.

    Args:
        wrong: what was found elsewhere, to be said if another one is made.
    """
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    folder = artifacts.cache_dir() / "native"
    path = folder / f"{compiling.machine()}-{compiling.digest(compiler, version)}.so"
    with suppress(OSError):
        return load(path)
    try:
        with artifacts.hold(path, on_wait=lambda line: None, timeout_s=LOCK_S):
            return _made(compiler, path, wrong)
    except (DSparkError, OSError, subprocess.CalledProcessError) as error:
        full = os.strerror(errno.ENOSPC) in compiling.reason(error)
        if isinstance(error, subprocess.CalledProcessError) and not full:
            raise
        _warn(f"The processor kernels are compiled for this run alone: {compiling.reason(error)}")
    with tempfile.TemporaryDirectory() as work:
        own = Path(work) / path.name
        compiling.compile_library(compiler, own)
        return load(own)


def _made(compiler: str, path: Path, wrong: str) -> ctypes.CDLL:
    """The library at `path`, which another process may have made meanwhile."""
    try:
        return load(path)
    except Damaged as error:
        wrong = str(error)
    except FileNotFoundError:
        pass
    compiling.compile_library(compiler, path)
    own = load(path)
    if wrong:
        _warn(f"{wrong}; it was compiled again{'' if str(path) in wrong else f', into {path}'}")
    return own


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
