"""`check.cpp`: every level's kernels against plain sums, here and on processors that are emulated.

The emulators are Debian's qemu-user, and g++-aarch64-linux-gnu compiles for 64-bit ARM. With
DSPARK_KEEP_EMULATED=results/kernels_aarch64.txt what the emulated ARM processor says is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from dspark import native
from dspark.native import build, compiling

CHECK = Path(__file__).with_name("check.cpp")
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_LIBRARIES = "/usr/aarch64-linux-gnu"
X86_EMULATOR = "qemu-x86_64"
KEEP = "DSPARK_KEEP_EMULATED"  # a file for the output of the emulated ARM processor

needs_kernels = pytest.mark.skipif(len(native.usable()) < 2, reason="no kernels here")


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def compiled(compiler: str, library: Path, out: Path, *flags: str) -> Path:
    """The check, bound to a library of kernels."""
    include = f"-I{compiling.HERE}"
    command = [compiler, "-std=c++17", include, *flags, str(CHECK), str(library), "-o", str(out)]
    subprocess.run(command, check=True, timeout=600)
    return out


def output(command: Sequence[str | Path]) -> str:
    """What a program prints; it must end well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def own_library() -> tuple[str, Path]:
    """A compiler, and the library that serves on this machine."""
    compiler, library = compiling.find_compiler(), build.library()
    if compiler is None:
        pytest.skip("no C++ compiler here")
    assert library is not None
    return compiler, Path(library._name)


@needs_kernels
def test_every_level_that_runs_here_is_right(tmp_path: Path) -> None:
    check = compiled(*own_library(), tmp_path / "check", "-O0")
    expected = [f"{level}: right" for level in native.usable()[1:]]
    assert output([check]).splitlines() == expected


@pytest.mark.soak
@needs_kernels
@needs(X86_EMULATOR)
@pytest.mark.skipif(compiling.machine() != "x86_64", reason="no x86 processor here")
def test_a_processor_without_avx512_gets_avx2(tmp_path: Path) -> None:
    check = compiled(*own_library(), tmp_path / "check", "-O1")
    assert output([X86_EMULATOR, "-cpu", "Haswell", check]) == "avx2: right\n"


@pytest.mark.soak
@needs(ARM_COMPILER, ARM_EMULATOR)
def test_both_levels_of_64_bit_arm(tmp_path: Path) -> None:
    compiler = shutil.which(ARM_COMPILER)
    assert compiler is not None
    library = tmp_path / "kernels.so"
    assert compiling.compile_library(compiler, library, kind="aarch64") == ["neon", "neon_bf16"]
    check = compiled(compiler, library, tmp_path / "check", "-O1")
    told = output([ARM_EMULATOR, "-L", ARM_LIBRARIES, check])
    assert told == "neon: right\nneon_bf16: right\n"
    if file := os.environ.get(KEEP):
        versions = [output([name, "--version"]) for name in (ARM_COMPILER, ARM_EMULATOR)]
        head = [version.splitlines()[0] for version in versions]
        Path(file).write_text("\n".join([*head, "", told]), encoding="utf-8")
