"""DSpark: train, judge and serve draft models for large language models.

from dspark import LLM, SamplingParams

llm = LLM("smollm2-135m")
print(llm.generate("Why is the sky blue?").text)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspark.api.async_llm import AsyncLLM
    from dspark.api.llm import LLM
    from dspark.api.models import load_drafter, load_target
    from dspark.api.outputs import RequestOutput, TextPiece
    from dspark.core import RoundRecord, SamplingParams, TokenKind, TokenLogprobs
    from dspark.drafters.drafter import Drafter
    from dspark.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        DSparkError,
        EngineError,
        IncompatibleDrafterError,
        InUseError,
        PromptTooLongError,
        QueueFullError,
        RequestError,
    )

__version__ = "0.1.0"

# PyTorch's threads go on looking for work for some milliseconds after each operation, on cores that
# our kernels want meanwhile: 18 % of a sampling step on two cores. It is read when PyTorch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Modules of the public names. They load at first use: `import dspark` alone must stay light.
_NAMES = {
    "dspark.api.async_llm": ("AsyncLLM",),
    "dspark.api.llm": ("LLM",),
    "dspark.api.models": ("load_drafter", "load_target"),
    "dspark.api.outputs": ("RequestOutput", "TextPiece"),
    "dspark.core": ("RoundRecord", "SamplingParams", "TokenKind", "TokenLogprobs"),
    "dspark.drafters.drafter": ("Drafter",),
    "dspark.errors": (
        "CheckpointError",
        "ConfigError",
        "DSparkError",
        "DataError",
        "EngineError",
        "InUseError",
        "IncompatibleDrafterError",
        "PromptTooLongError",
        "QueueFullError",
        "RequestError",
    ),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "LLM",
    "AsyncLLM",
    "CheckpointError",
    "ConfigError",
    "DSparkError",
    "DataError",
    "Drafter",
    "EngineError",
    "InUseError",
    "IncompatibleDrafterError",
    "PromptTooLongError",
    "QueueFullError",
    "RequestError",
    "RequestOutput",
    "RoundRecord",
    "SamplingParams",
    "TextPiece",
    "TokenKind",
    "TokenLogprobs",
    "__version__",
    "load_drafter",
    "load_target",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
