"""Resumable state of a run: weights, optimiser moments and counters, written whole or not at all.

Tensors lie in safetensors files, everything else in JSON; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dspark.artifacts import atomic_folder, recover_folder
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


def read_counters(out: Path) -> dict[str, Any] | None:
    """What a run's state counts, or None when ``out`` holds no state.

    A state that a kill caught in the middle of being replaced is put back first.

    Raises:
        CheckpointError: when it is damaged.
    """
    folder = out / FOLDER
    recover_folder(folder)
    if not folder.exists():
        return None
    with reading(out):
        counters = json.loads((folder / "counters.json").read_text(encoding="utf-8"))
        if not isinstance(counters, dict):
            raise ValueError("counters.json holds no fields")
    return counters


def load_snapshot(out: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> None:
    """Restore weights and moments in place.

    Raises:
        CheckpointError: when they are damaged or belong to another model shape.
    """
    folder = out / FOLDER
    with reading(out):
        model.load_state_dict(load_file(folder / "model.safetensors"))
        moments = load_file(folder / "optimiser.safetensors")
        for number, optimiser in enumerate(optimisers):
            _unpack(optimiser, moments, f"o{number}")


@contextmanager
def reading(out: Path) -> Iterator[None]:
    """Word what can go wrong while the state below ``out`` is read."""
    try:
        yield
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        text = str(error) or "no text"
        raise CheckpointError(
            f"Cannot resume from {out / FOLDER}",
            found=f"{type(error).__name__}: {text.splitlines()[0][:160]}",
            fix="Put back a whole copy, or delete the folder to start anew",
        ) from error
