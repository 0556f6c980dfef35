"""Writes that happen whole or not at all.

A writer first fills a temporary neighbour (same folder, hence same file system) and then renames
it, so a kill or a full disk leaves the old file as it was.
"""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dspark.errors import CheckpointError, DataError, DSparkError

_ADVICE = {
    errno.ENOSPC: "Free some disk space or choose another folder",
    errno.EDQUOT: "Your disk quota is used up: free some space or choose another folder",
    errno.EACCES: "Choose a folder you may write to",
    errno.EPERM: "Choose a folder you may write to",
    errno.EROFS: "This file system is read-only: choose another folder",
    errno.ENOTDIR: "A part of the path is a file, not a folder",
    errno.EISDIR: "The path is a folder; name a file",
    errno.EFBIG: "The file system does not hold files of this size; choose another folder",
    errno.EIO: "The disk reported an error; choose another one",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


def _errno_of(exc: Exception) -> int | None:
    """The operating system's error number behind `exc`, or None.

    safetensors writes from Rust and raises its own exception, which carries the number as text.
    """
    if isinstance(exc, OSError):
        return exc.errno
    match = re.search(r"\(os error (\d+)\)", str(exc))
    return int(match.group(1)) if match else None


def write_error(path: Path, exc: Exception, kind: type[DSparkError]) -> DSparkError:
    """Words `exc`, met while writing `path`, for a person."""
    code = _errno_of(exc)
    return kind(
        f"cannot write {path}",
        found=os.strerror(code) if code else exc,
        fix=_ADVICE.get(code or 0, "Choose another folder"),
    )


def check_writable(path: Path, kind: type[DSparkError] = DataError) -> None:
    """Refuse a file that could not be written, before minutes of work go into its content.

    Nothing is made: what the disk says beyond that, the writing itself tells.

    Raises:
        kind: it is a folder, or there is no folder above it that may be written to.
    """
    if is_device(path) and os.access(path, os.W_OK):
        return
    real = Path(os.path.realpath(path))  # where a symbolic link leads
    above = next((p for p in real.parents if os.path.exists(p)), Path("/"))
    found = None
    if os.path.isdir(path):
        found = "it is a folder"
    elif not above.is_dir():
        found = f"{above} is a file"
    elif not os.access(above, os.W_OK):
        found = f"{above} may not be written to"
    if found:
        raise kind(f"cannot write {path}", found=found, fix="Choose another place")


def _neighbour(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.{ending}")


def _sync_folder(folder: Path) -> None:
    # A rename is only sure to survive a power cut once the folder itself is on disk. Some file
    # systems refuse to sync folders; there is nothing better to do then.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_device(path: Path) -> bool:
    """Whether a path leads to what takes bytes and keeps no name: a terminal, a pipe, /dev/null."""
    with suppress(OSError):
        mode = path.stat().st_mode
        return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    return False


def atomic_write_bytes(
    path: str | Path, content: bytes, *, error: type[DSparkError] = DataError
) -> None:
    """Writes `content` to `path`, making missing folders; on failure the old file stays.

    A symbolic link stays one: the file that it leads to is replaced. A device gets the bytes.

    Raises:
        error: the folder cannot be written to, or the disk is full.
    """
    atomic_write_parts(path, [content], error=error)


def atomic_write_parts(
    path: str | Path,
    parts: Iterable[bytes | memoryview],
    *,
    error: type[DSparkError] = DataError,
) -> None:
    """Like `atomic_write_bytes`, for content in parts that are never held together."""
    path = Path(path)
    if is_device(path):
        return _write_through(path, parts, error)
    path = Path(os.path.realpath(path))
    stage = _neighbour(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with stage.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(stage, path)
    except OSError as exc:
        raise write_error(path, exc, error) from exc
    finally:
        with suppress(OSError):
            stage.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _write_through(
    path: Path, parts: Iterable[bytes | memoryview], error: type[DSparkError]
) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            for part in parts:
                left = memoryview(part).cast("B")
                while left:
                    left = left[file.write(left) :]
    except OSError as exc:
        raise write_error(path, exc, error) from exc


def atomic_write_text(path: str | Path, text: str, *, error: type[DSparkError] = DataError) -> None:
    """Like `atomic_write_bytes`, for text in UTF-8."""
    atomic_write_bytes(path, text.encode(), error=error)


def finite(value: Any) -> Any:
    """`value` with nan and infinities replaced by None: JSON has no word for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def atomic_write_json(path: str | Path, data: Any, *, error: type[DSparkError] = DataError) -> None:
    """Like `atomic_write_bytes`, for indented JSON. Floats that are not finite become null."""
    text = json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n", error=error)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def recover_folder(path: str | Path, stale_s: float = 600) -> None:
    """Repairs what a kill in the middle of `atomic_folder(path)` may have left behind.

    If the kill fell between the two renames of the swap, the old folder is put back. Staging
    folders of processes that are gone are removed once they are `stale_s` seconds old (the age
    guards the rare case of a process on another machine that shares the disk).
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        return
    for rest in path.parent.glob(f".{glob.escape(path.name)}.*.*.*"):
        with suppress(OSError, ValueError):
            pid, ending = int(rest.suffixes[-3][1:]), rest.suffix
            if ending not in (".tmp", ".old") or (os.name == "posix" and _alive(pid)):
                continue
            if ending == ".old" and not path.exists():
                rest.rename(path)
            elif time.time() - rest.stat().st_mtime >= stale_s:
                shutil.rmtree(rest)


@contextmanager
def atomic_folder(
    path: str | Path, *, error: type[DSparkError] = CheckpointError
) -> Iterator[Path]:
    """Stages a folder beside `path` and swaps it in when the block ends without an error.

    Yields:
        the empty staging folder to fill. Until the block ends, an older folder at `path` stays
        untouched; when the block fails, it stays for good.

    Raises:
        error: the place cannot be written to, the disk is full, or `path` is a file.
    """
    path = Path(os.path.realpath(path))
    stage = _neighbour(path, "tmp")
    try:
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        stage.mkdir()
        yield stage
        _sync_tree(stage)
        _swap(stage, path)
    except Exception as exc:
        # Only what writing can cause is reworded; a lost connection in the block is not ours.
        if not isinstance(exc, DSparkError) and _errno_of(exc) in _ADVICE:
            raise write_error(path, exc, error) from exc
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    _sync_folder(path.parent)


def _sync_tree(folder: Path) -> None:
    # safetensors makes files that only their owner may read; give them what the user's umask
    # gave the folder.
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())


def _swap(stage: Path, path: Path) -> None:
    if not path.exists():
        os.rename(stage, path)
        return
    old = _neighbour(path, "old")
    os.rename(path, old)
    try:
        os.rename(stage, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)
