"""DSpark: train, judge and serve draft models for large language models."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspark.core import SamplingParams
    from dspark.drafters.checkpoint import load_drafter
    from dspark.engine.async_engine import AsyncEngine
    from dspark.engine.engine import Engine
    from dspark.targets.target import load_target

__version__ = "0.1.0"

# PyTorch's threads go on looking for work for some milliseconds after each operation, on cores that
# our kernels want meanwhile: 18 % of a sampling step on two cores. It is read when PyTorch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__all__ = [
    "AsyncEngine",
    "Engine",
    "SamplingParams",
    "__version__",
    "load_drafter",
    "load_target",
]

# Modules of the names above. They load at first use: `import dspark` alone must stay light.
_HOMES = {
    "AsyncEngine": "dspark.engine.async_engine",
    "Engine": "dspark.engine.engine",
    "SamplingParams": "dspark.core",
    "load_drafter": "dspark.drafters.checkpoint",
    "load_target": "dspark.targets.target",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
