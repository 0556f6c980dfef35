"""What a long run needs around its work: a writable folder, fast numbers."""

from __future__ import annotations

import contextlib
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
def quiet_denormals() -> Any:
    """Flush denormal numbers to zero while training: they slow the processor and carry nothing."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
