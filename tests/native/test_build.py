"""Compiling for the machine: once, whole, and with something to fall back on."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspark import native
from dspark.native import build, compiling

TRY = """
import os, warnings, torch
from dspark import native
from dspark.targets.layers import PackedLinear
from dspark.native import compiling
compiling.TIMEOUT_S = float(os.environ.get("TIMEOUT", compiling.TIMEOUT_S))
compiling.FLAGS = tuple("-O0" if flag == "-O3" else flag for flag in compiling.FLAGS)  # soon done
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    linear = PackedLinear(torch.eye(4))
    PackedLinear(torch.eye(4))
with torch.inference_mode():
    print(linear(torch.arange(4.0)[None])[0].tolist(), linear.packed is not None)
print(native.current(), "|", native.describe())
print(len(seen), *(warning.message for warning in seen))
"""
RIGHT = "[0.0, 1.0, 2.0, 3.0]"


def run(**env: str) -> list[str]:
    """What a fresh process prints when it packs and multiplies."""
    inherited = {name: value for name, value in os.environ.items() if name != "DSPARK_KERNELS"}
    done = subprocess.run(
        [sys.executable, "-c", TRY],
        env=inherited | env,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return done.stdout.splitlines()


def compiler_that(script: str, path: Path) -> str:
    """A compiler that knows its version and else does as told."""
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


needs_kernels = pytest.mark.skipif(build.library() is None, reason="no C++ compiler here")
BEST = native.usable()[-1]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder into which two processes compiled at once."""
    cache = tmp_path_factory.mktemp("cache")
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(run, DSPARK_CACHE=str(cache)) for _ in range(2)]
    for job in jobs:
        lines = job.result()
        assert lines[0] == f"{RIGHT} True"
        assert lines[1].startswith(f"{BEST} |")
        assert lines[2] == "0"
    return cache


@needs_kernels
def test_two_processes_at_once_compile_into_an_empty_cache(compiled: Path) -> None:
    files = sorted(path.suffix for path in (compiled / "native").iterdir())
    assert files == [".sha256", ".so"]


@needs_kernels
@pytest.mark.parametrize("level", compiling.LEVELS.get(compiling.machine(), ()))
def test_no_level_is_left_out_that_the_compiler_knows(level: str) -> None:
    """A mistake in the sources would leave it out in silence."""
    compiler, own = compiling.find_compiler(), build.library()
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    assert own is not None
    flags = compiling.LEVELS[compiling.machine()][level]
    known = subprocess.run(
        [compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull], capture_output=True
    )
    assert hasattr(own, f"dspark_{level}") == (known.returncode == 0)


@needs_kernels
@pytest.mark.parametrize("level", native.usable()[1:])
def test_every_level_can_be_asked_for(level: str, compiled: Path) -> None:
    lines = run(DSPARK_CACHE=str(compiled), DSPARK_KERNELS=level)
    assert lines[0] == f"{RIGHT} True"
    assert lines[1].startswith(f"{level} |")
    assert lines[2] == "0"


@needs_kernels
@pytest.mark.parametrize(("asked", "what"), [("avx3", "is no level"), ("neon", "does not run")])
def test_a_level_that_is_not_here_is_named_and_the_best_one_serves(
    asked: str, what: str, compiled: Path
) -> None:
    if asked in native.usable():
        asked = "avx2"
    lines = run(DSPARK_CACHE=str(compiled), DSPARK_KERNELS=asked)
    assert lines[0] == f"{RIGHT} True"
    assert lines[1].startswith(f"{BEST} |")
    assert lines[2].startswith(f"1 DSPARK_KERNELS={asked} {what}")


def damage(library: Path, how: str) -> None:
    """What a crash, a full disk or a foreign hand does to a library."""
    check = library.with_suffix(compiling.CHECK)
    if how == "half":
        library.write_bytes(library.read_bytes()[:5000])
    elif how == "empty":
        library.write_bytes(b"")
    elif how == "random":
        library.write_bytes(os.urandom(library.stat().st_size))
    elif how == "foreign":
        other = next(Path("/").glob(f"usr/lib*/**/{ctypes.util.find_library('m')}"))
        shutil.copyfile(other, library)
        check.write_text(compiling.content_hash(library))
    elif how == "no hash":
        check.unlink()
    else:
        check.write_bytes(b"\xff\xfe")


DAMAGES = ["half", "empty", "random", "foreign", "no hash", "hash of noise"]


@needs_kernels
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_library_is_not_opened(how: str, compiled: Path, tmp_path: Path) -> None:
    shutil.copytree(compiled / "native", tmp_path / "native")
    (library,) = (tmp_path / "native").glob("*.so")
    assert build.load(library)
    damage(library, how)
    with pytest.raises(build.Damaged, match="is damaged"):
        build.load(library)


@needs_kernels
def test_a_damaged_library_is_made_again_once(compiled: Path, tmp_path: Path) -> None:
    shutil.copytree(compiled, tmp_path / "cache")
    (library,) = (tmp_path / "cache" / "native").glob("*.so")
    damage(library, "half")
    lines = run(DSPARK_CACHE=str(tmp_path / "cache"))
    assert lines[0] == f"{RIGHT} True"
    assert lines[2] == f"1 The kernel library {library} is damaged; it was compiled again"
    assert build.load(library)
    assert run(DSPARK_CACHE=str(tmp_path / "cache"))[2] == "0"


@pytest.fixture
def in_a_wheel(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A library that came with the package."""
    (library,) = (compiled / "native").glob("*.so")
    shipped = tmp_path / "kernels.so"
    shutil.copyfile(library, shipped)
    shutil.copyfile(library.with_suffix(compiling.CHECK), shipped.with_suffix(compiling.CHECK))
    monkeypatch.setattr(compiling, "shipped", lambda: shipped)
    monkeypatch.setattr(compiling, "FLAGS", (*compiling.FLAGS, "-O0"))
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "cache"))
    build.library.cache_clear()
    yield shipped
    build.library.cache_clear()


@needs_kernels
def test_a_damaged_one_of_the_package_is_made_once_in_the_cache(
    in_a_wheel: Path, tmp_path: Path
) -> None:
    damage(in_a_wheel, "half")
    with pytest.warns(UserWarning, match=f"{in_a_wheel} is damaged; .* again, into {tmp_path}"):
        assert build.library() is not None
    build.library.cache_clear()
    assert build.library() is not None  # and not a word: a warning would be an error here


@needs_kernels
def test_a_damaged_one_of_the_package_without_a_compiler(
    in_a_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "find_compiler", lambda: None)
    assert build.library() is not None
    build.library.cache_clear()
    damage(in_a_wheel, "empty")
    with pytest.warns(UserWarning, match=r"is damaged, and there is no C\+\+ compiler"):
        assert build.library() is None


@needs_kernels
def test_doctor_survives_and_says_it(tmp_path: Path) -> None:
    quick = compiler_that(f'exec {compiling.find_compiler()} "$@" -O0', tmp_path / "quick")
    name = f"{compiling.machine()}-{compiling.digest(quick, '')}.so"
    library = tmp_path / "cache" / "native" / name
    library.parent.mkdir(parents=True)
    library.write_bytes(b"dspark_level, half of it")
    done = subprocess.run(
        [sys.executable, "-m", "dspark.cli.main", "doctor", "--json"],
        env=os.environ | {"DSPARK_CACHE": str(tmp_path / "cache"), "CXX": quick},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cpu"]["kernels"].startswith(BEST)
    assert done.stderr.splitlines() == [
        f"dspark: note: The kernel library {library} is damaged; it was compiled again"
    ]


@needs_kernels
def test_a_full_cache_disk_costs_a_line(tmp_path: Path) -> None:
    """A compiler that finds the disk full in the cache, and room elsewhere."""
    real = compiling.find_compiler()
    full = 'case "$*" in *"$DSPARK_CACHE"*) echo "ld: No space left on device" >&2; exit 1;; esac'
    stingy = compiler_that(f'{full}; exec {real} "$@"', tmp_path / "stingy")
    lines = run(DSPARK_CACHE=str(tmp_path / "cache"), CXX=stingy)
    assert lines[0] == f"{RIGHT} True"
    assert lines[2].startswith("1 The processor kernels are compiled for this run alone")
    assert "No space left" in lines[2]


@needs_kernels
def test_a_wrong_level_is_named_by_the_verbs_too(
    default_target: Path,
) -> None:
    """Where a measured choice decides, not the processor's best."""
    done = subprocess.run(
        [sys.executable, "-m", "dspark.cli.main", "doctor"],
        env=os.environ | {"DSPARK_KERNELS": "avx3"},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    notes = [line for line in done.stderr.splitlines() if "avx3" in line]
    assert len(notes) == 1
    assert notes[0].startswith("dspark: note: DSPARK_KERNELS=avx3 is no level")


def test_left_out_by_choice(tmp_path: Path) -> None:
    lines = run(DSPARK_CACHE=str(tmp_path), DSPARK_KERNELS="torch")
    assert lines[0] == f"{RIGHT} False"
    assert lines[1] == "torch | left out (DSPARK_KERNELS=torch); PyTorch's operations serve"
    assert lines[2] == "0"
    assert not list(tmp_path.iterdir())


def test_no_compiler_needs_no_word(tmp_path: Path) -> None:
    lines = run(DSPARK_CACHE=str(tmp_path), PATH=str(tmp_path), CXX="")
    assert lines[0] == f"{RIGHT} False"
    assert lines[1:] == ["torch | no C++ compiler found; PyTorch's operations serve", "0"]


@pytest.mark.parametrize("fault", ["fails", "hangs"])
def test_a_compiler_that_does_not_do_it_is_named_once(fault: str, tmp_path: Path) -> None:
    script = 'echo "no such flag" >&2; exit 1' if fault == "fails" else "exec sleep 600"
    broken = compiler_that(script, tmp_path / "compiler")
    lines = run(DSPARK_CACHE=str(tmp_path / "cache"), CXX=broken, TIMEOUT="1")
    assert lines[0] == f"{RIGHT} False"
    assert lines[1].startswith("torch |")
    assert lines[2].startswith("1 The processor kernels could not be compiled with")
    assert ("no such flag" if fault == "fails" else "took longer than 1 s") in lines[2]
    assert not list((tmp_path / "cache" / "native").glob("*.so"))


@needs_kernels
def test_a_level_that_the_compiler_cannot_make_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compiling.find_compiler()
    assert real is not None
    refuse = f'case "$*" in *"-DDSPARK_LEVEL={BEST} "*) exit 1;; esac; exec {real} "$@"'
    old = compiler_that(refuse, tmp_path / "old")
    if len(native.usable()) < 3:
        pytest.skip("one level alone")
    monkeypatch.setattr(compiling, "FLAGS", (*compiling.FLAGS, "-O0"))
    made = compiling.compile_library(old, tmp_path / "library.so")
    assert made
    assert BEST not in made
    assert build.load(tmp_path / "library.so")


@needs_kernels
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm on this machine")
@pytest.mark.parametrize("level", native.usable()[1:])
def test_levels_share_no_function(level: str, tmp_path: Path) -> None:
    """Of functions with one name the linker keeps one, whichever instructions it was made of."""
    compiler, out = compiling.find_compiler(), tmp_path / "level.o"
    assert compiler is not None
    flags = ["-std=c++17", "-O0", *compiling.LEVELS[compiling.machine()][level]]
    source = str(compiling.HERE / compiling.LEVEL)
    subprocess.run(
        [compiler, *flags, f"-DDSPARK_LEVEL={level}", "-c", source, "-o", str(out)], check=True
    )
    listed = subprocess.run(
        ["nm", "-C", "--defined-only", str(out)], check=True, capture_output=True, text=True
    )
    symbols = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    ours = (f"dspark::{level}::", "DW.ref")  # the latter are addresses
    weak = [name for _, kind, name in symbols if kind in "WVu"]
    assert not [name for name in weak if not any(part in name for part in ours)]
    assert any(kind == "W" for _, kind, _ in symbols)


@needs_kernels
def test_another_source_is_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiling.digest("compiler")
    assert compiling.digest("compiler") == first
    assert compiling.digest("another") != first
    monkeypatch.setattr(compiling, "FLAGS", (*compiling.FLAGS, "-g"))
    assert compiling.digest("compiler") != first
