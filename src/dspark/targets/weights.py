"""What a target's weights are kept as: in the number type of its arithmetic, or in eight bits."""

from __future__ import annotations

import torch

from dspark import native
from dspark.errors import ConfigError
from dspark.native.levels import SWITCH
from dspark.targets.family import TargetSpec
from dspark.targets.products import layer_shapes

SAME, INT8 = "same", "int8"
WEIGHTS = (SAME, INT8)
STEP = 4  # inputs that a product of bytes takes at a time


def check_weights(weights: str, spec: TargetSpec, dtype: str, device: str) -> None:
    """Refuse weights that a target cannot be kept in here.

    Args:
        weights: one of `WEIGHTS`.
        spec: of the target.
        dtype, device: as `load_target` takes them.

    Raises:
        ConfigError: naming the first reason.
    """
    if weights not in WEIGHTS:
        fix = f"Use one of {', '.join(WEIGHTS)}"
        raise ConfigError("Unknown weights", found=weights, fix=fix)
    found = None if weights == SAME else _obstacle(spec, dtype, device)
    if found:
        raise ConfigError(
            "Weights of eight bits are not served here", found=found, fix="Use --weights same"
        )


def _obstacle(spec: TargetSpec, dtype: str, device: str) -> str | None:
    """What keeps a target from having weights of eight bits."""
    if torch.device(device).type != "cpu":
        return f"device {device}; they are for a processor"
    if dtype == "float16":
        return "dtype float16; they go with bfloat16 and float32"
    if not spec.is_lean:
        return f"model type {spec.model_type}, which runs through its Hugging Face module"
    if native.forced() == native.TORCH:
        return f"{SWITCH}={native.TORCH}; only our kernels have products of them"
    if len(native.usable()) == 1:
        return f"kernels: {native.describe()}"
    sizes = [inputs for _, inputs in layer_shapes(spec) if inputs % STEP]
    return f"a product of {sizes[0]} inputs, no multiple of {STEP}" if sizes else None
