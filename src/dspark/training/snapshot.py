"""Resumable state of a run: weights, optimiser moments and counters, written whole or not at all.

Tensors lie in safetensors files, everything else in JSON; nothing is pickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dspark.artifacts import atomic_folder
from dspark.errors import CheckpointError

FOLDER = "state"


def _pack(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimiser's per-parameter tensors under flat names."""
    state = optimiser.state_dict()["state"]
    return {
        f"{prefix}.{index}.{key}": value.detach().clone().contiguous()
        for index, entry in state.items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }


def _unpack(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    whole = optimiser.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def save_snapshot(
    out: Path,
    model: nn.Module,
    optimisers: list[torch.optim.Optimizer],
    counters: dict[str, Any],
) -> None:
    """Write the run's state below ``out``.

    Raises:
        CheckpointError: when it cannot be written; the state before it stays.
    """
    moments: dict[str, Tensor] = {}
    for number, optimiser in enumerate(optimisers):
        moments |= _pack(optimiser, f"o{number}")
    weights = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    with atomic_folder(out / FOLDER) as stage:
        (stage / "model.safetensors").write_bytes(save(weights))
        (stage / "optimiser.safetensors").write_bytes(save(moments))
        (stage / "counters.json").write_text(json.dumps(counters), encoding="utf-8")


def load_snapshot(
    out: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]
) -> dict[str, Any] | None:
    """Restore a run's state in place; None when ``out`` holds none.

    Raises:
        CheckpointError: when it is damaged or belongs to another model shape.
    """
    folder = out / FOLDER
    if not folder.exists():
        return None
    try:
        counters: dict[str, Any] = json.loads((folder / "counters.json").read_text("utf-8"))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        moments = load_file(folder / "optimiser.safetensors")
        for number, optimiser in enumerate(optimisers):
            _unpack(optimiser, moments, f"o{number}")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"Cannot resume from {folder}",
            found=f"{type(error).__name__}: {str(error).splitlines()[0][:160]}",
            fix="Use the configuration it was started with, or another `out` folder",
        ) from error
    return counters
