"""What a long run needs around its work: a writable folder, whole steps on Ctrl-C, fast numbers."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dspark.artifacts import write_error
from dspark.errors import CheckpointError


def check_writable(folder: Path) -> None:
    """Fail before the work rather than after it.

    Raises:
        CheckpointError: when the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise write_error(folder, error, CheckpointError) from error


@contextlib.contextmanager
def hold_interrupt() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block, so that no step is half done; a second does not.

    Does nothing outside the main thread or where Ctrl-C has another meaning.
    """
    if not _ctrl_c_is_ours():
        yield
        return
    came: list[bool] = []

    def note(*_: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(True)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def note_interrupts() -> Iterator[list[bool]]:
    """Only note Ctrl-C, however often it comes, so that several processes can stop together.

    Yields:
        a list that is empty as long as nothing came.
    """
    came: list[bool] = []
    if not _ctrl_c_is_ours():
        yield came
        return
    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _ctrl_c_is_ours() -> bool:
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@contextlib.contextmanager
def quiet_denormals() -> Any:
    """Flush denormal numbers to zero while training: they slow the processor and carry nothing."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
