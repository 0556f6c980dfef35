"""What a long run needs around its work: fast numbers."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


@contextlib.contextmanager
def quiet_denormals() -> Any:
    """Flush denormal numbers to zero while training: they slow the processor and carry nothing."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
