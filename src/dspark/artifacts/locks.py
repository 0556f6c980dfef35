"""Outputs that one process at a time adds to.

A lock is a hidden file beside the output, `.NAME.lock`, that goes away with it: at the end of the
work, or with the process, since the operating system gives the lock up when its holder dies.
"""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from dspark.artifacts.writing import is_device, write_error
from dspark.errors import DataError, DSparkError, InUseError

# Errors of file systems without locks; a file that names its holder is the lock there.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock_path(path: str | Path) -> Path:
    """The lock of an output: beside the file itself, whichever link leads there."""
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.name}.lock")


def is_lock(path: Path) -> bool:
    """Whether a file is the lock of an output, and no part of what lies beside it."""
    return path.name.startswith(".") and path.name.endswith(".lock")


@contextmanager
def hold(
    path: str | Path,
    *,
    on_wait: Callable[[str], None] | None = None,
    timeout_s: float = -1,
    error: type[DSparkError] = DataError,
) -> Iterator[None]:
    """Keep other processes off an output while the block runs. Missing folders are made, and
    removed if nothing came to lie in them.

    Args:
        path: the file or folder that the block writes, there or not.
        on_wait: given, another process is waited for, and this told about it in a line.
        timeout_s: longest wait; forever by default.

    Raises:
        InUseError: another process holds it.
        error: the folder cannot be written to.
    """
    with ExitStack() as held:
        if not is_device(Path(path)):  # a terminal or a pipe takes what anybody writes
            missing = [above for above in lock_path(path).parents if not above.exists()]
            held.callback(_remove_empty, missing)
            lock = _take(Path(path), on_wait, timeout_s, error)
            held.callback(_give_back, lock)
        yield


def _take(
    path: Path,
    on_wait: Callable[[str], None] | None,
    timeout_s: float,
    error: type[DSparkError],
) -> BaseFileLock:
    file = lock_path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock: BaseFileLock = FileLock(file)
        try:
            _acquire(lock, 0)
        except Timeout:
            if on_wait is None:
                raise
            on_wait(f"{_holder(file)} is at work on {path}; waiting for it")
            _acquire(lock, timeout_s)
        except OSError as failure:
            if failure.errno not in _NO_LOCKS:
                raise
            if not file.stat().st_size:  # opened just now, and no holder's
                file.unlink()
            lock = SoftFileLock(file)
            _acquire(lock, 0)
    except Timeout as failure:
        raise InUseError(
            f"another run writes {path}",
            found=_holder(file),
            fix="Wait for its end, stop it, or choose another output",
        ) from failure
    except OSError as failure:
        raise write_error(path, failure, error) from failure
    if not isinstance(lock, SoftFileLock):  # which names its holder itself
        with suppress(OSError):
            file.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
    return lock


def _acquire(lock: BaseFileLock, timeout_s: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it falls back, which is no news for a reader
        lock.acquire(timeout=timeout_s)


def _give_back(lock: BaseFileLock) -> None:
    # Removed while it is still held: whoever opened it meanwhile finds that out and begins again.
    if not isinstance(lock, SoftFileLock):
        with suppress(OSError):
            os.unlink(lock.lock_file)
    with suppress(OSError):
        lock.release()


def _remove_empty(folders: list[Path]) -> None:
    """Folders that were made for a lock, deepest first, unless something came to lie in them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _holder(file: Path) -> str:
    """Who holds a lock, as far as the lock says so."""
    with suppress(OSError, ValueError, IndexError):
        since = datetime.fromtimestamp(file.stat().st_mtime)
        process, host = file.read_text(encoding="utf-8").splitlines()[:2]
        return f"process {int(process)} on {host}, since {since:%Y-%m-%d %H:%M:%S}"
    return "another process"
