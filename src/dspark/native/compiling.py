"""Compiles the kernels: every level that a compiler can make, in one library.

Only the standard library, so that the build of a wheel can use it too (hatch_build.py).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=fast", "-Wno-psabi")
SHARED = "shared.cpp"
LEVEL = "level.cpp"
CHECK = ".sha256"  # ending of the file beside a library
TIMEOUT_S = 300

_X86_512 = "-march=x86-64-v4"
_X86_BF16 = ("-mavx512bf16", "-mavx512vnni")
# What each level may use, worst first; each runs on processors that run the one after it.
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx2": ("-march=x86-64-v3",),
        "avx512": (_X86_512,),
        "avx512_bf16": (_X86_512, *_X86_BF16),
        "amx": (_X86_512, *_X86_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    },
    "aarch64": {
        "neon": ("-march=armv8-a",),
        "neon_bf16": ("-march=armv8.2-a+bf16+dotprod",),
    },
}
_SAME = {"amd64": "x86_64", "arm64": "aarch64"}


def machine() -> str:
    """The processor's kind as `LEVELS` has it."""
    name = platform.machine().lower()
    return _SAME.get(name, name)


def find_compiler() -> str | None:
    """A C++ compiler: `$CXX`, else g++ or clang++ on the path."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    return None


def digest(*parts: str) -> str:
    """Names what a library is made of: sources, flags and what else is given."""
    sources = sorted((*HERE.glob("*.h"), *HERE.glob("*.cpp")))
    texts = [path.name + path.read_text(encoding="utf-8") for path in sources]
    return hashlib.sha256("\0".join([*FLAGS, repr(LEVELS), *texts, *parts]).encode()).hexdigest()[
        :16
    ]


def shipped() -> Path:
    """Where a wheel that was built with a compiler carries the library for this processor."""
    return HERE / f"kernels-{machine()}-{digest()}.so"


def compile_library(compiler: str, out: Path, kind: str | None = None) -> list[str]:
    """Make the library; returns the levels in it. What the compiler cannot make is left out.

    Args:
        compiler: path of a C++ compiler.
        out: file to write, whole or not at all.
        kind: processors to compile for, of `LEVELS`; this machine's by default.

    Raises:
        OSError: the folder cannot be written, or the compiler not run.
        subprocess.SubprocessError: no level can be made, or it took too long.
    """
    levels = LEVELS.get(kind or machine(), {})
    if not levels:
        raise OSError(f"there are no kernels for {kind or machine()}")
    with tempfile.TemporaryDirectory(dir=out.parent) as work, ThreadPoolExecutor() as at_once:
        folder = Path(work)
        jobs = {
            name: at_once.submit(
                _object, compiler, LEVEL, folder / f"{name}.o", (f"-DDSPARK_LEVEL={name}", *flags)
            )
            for name, flags in levels.items()
        }
        errors = {name: job.exception() for name, job in jobs.items()}
        made = [name for name, error in errors.items() if error is None]
        if not made:
            raise next(error for error in errors.values() if error is not None)
        _object(compiler, SHARED, folder / "shared.o", [f"-DHAS_{name}" for name in made])
        library = folder / out.name
        objects = [str(folder / f"{name}.o") for name in (*made, "shared")]
        _run([compiler, "-shared", "-pthread", *objects, "-o", str(library)])
        check = library.with_suffix(CHECK)
        check.write_text(content_hash(library), encoding="utf-8")
        check.replace(out.with_suffix(CHECK))
        library.replace(out)
    return made


def reason(error: Exception) -> str:
    """Why `compile_library` failed, in one line."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took longer than {error.timeout:.0f} seconds"
    output = getattr(error, "stderr", None) or str(error)
    return " ".join(output.split())[:300]


def content_hash(library: Path) -> str:
    """What lies beside a library, since opening half of one ends the process."""
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _object(compiler: str, source: str, out: Path, flags: Sequence[str]) -> None:
    _run([compiler, *FLAGS, *flags, "-c", str(HERE / source), "-o", str(out)])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
