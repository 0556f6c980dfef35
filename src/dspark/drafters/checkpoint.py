"""Drafter checkpoints in DeepSpec's layout: ``config.json`` and ``model.safetensors``.

Public files carry the target's embedding and head; ours leave them out, and when they are there
they are compared with the target. ``d2t`` is an offset on disk (target = draft + offset) and
absolute in memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dspark import native
from dspark.artifacts import atomic_folder, sha256_file
from dspark.drafters.checkpoint_config import config_from_json
from dspark.drafters.config import DrafterConfig
from dspark.drafters.drafter import Drafter
from dspark.drafters.dspark.informed import FILE as CONFIDENCE
from dspark.drafters.registry import make_drafter
from dspark.drafters.shared import SharedWeights
from dspark.errors import CheckpointError, IncompatibleDrafterError
from dspark.tables.calibration import FILE as CALIBRATION
from dspark.tables.calibration import CalibrationTable
from dspark.targets.layers import PackedLinear, pack_linears
from dspark.targets.target import Target

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SHARED_KEYS = ("embed_tokens.weight", "lm_head.weight")


def state_to_disk(drafter: Drafter, dtype: torch.dtype) -> dict[str, Tensor]:
    """The drafter's tensors under DeepSpec's names."""
    packed = any(isinstance(module, PackedLinear) for module in drafter.modules())
    assert not packed, "a packed drafter no longer holds its weights as they are stored"
    tensors = {}
    for key, value in drafter.state_dict().items():
        key = key.removeprefix("backbone.")
        if key == "d2t":
            value = value - torch.arange(len(value), device=value.device)
        else:
            value = value.to(dtype)
        tensors[key] = value.detach().cpu().contiguous().clone()
    return tensors


def save_drafter(
    drafter: Drafter,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    extra_files: dict[str, str] | None = None,
) -> Path:
    """Write a checkpoint folder, whole or not at all.

    Args:
        dtype: of the stored weights.
        extra_files: further text files by name (provenance, training metrics).

    Raises:
        CheckpointError: when the folder cannot be written; what stood there is kept.
    """
    name = str(dtype).removeprefix("torch.")
    fields = drafter.config.to_json({"dtype": name})
    payload = save(state_to_disk(drafter, dtype), metadata={"format": "pt"})
    with atomic_folder(folder) as stage:
        (stage / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        (stage / WEIGHTS).write_bytes(payload)
        for file, text in (extra_files or {}).items():
            (stage / file).write_text(text, encoding="utf-8")
    return Path(folder)


def read_checkpoint(folder: str | Path) -> tuple[DrafterConfig, dict[str, Tensor]]:
    """Configuration and tensors of a checkpoint folder.

    Raises:
        CheckpointError: when a file is missing, damaged or truncated.
    """
    path = Path(folder)
    try:
        fields = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(path / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"Cannot read the drafter in {path}",
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}",
            fix="The folder must hold a whole config.json and model.safetensors; copy it again",
        ) from error
    config = config_from_json(fields, str(path / CONFIG))
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{path / WEIGHTS}: {name} has values that are not finite",
                found=f"{int((~tensor.isfinite()).sum())} of {tensor.numel()}",
                fix="Copy or export the checkpoint again",
            )
    return config, tensors


def load_state(
    drafter: Drafter, tensors: dict[str, Tensor], where: str, as_stored: bool = False
) -> None:
    """Put tensors with DeepSpec's names into a drafter; shapes and names must all match.

    Args:
        as_stored: take the tensors themselves, in their own number type, and copy nothing.

    Raises:
        CheckpointError: naming the tensors that are missing, unexpected or of another shape.
    """
    state = {}
    own = drafter.state_dict()
    for key, value in tensors.items():
        if key in SHARED_KEYS or key == "t2d":
            continue
        if key == "d2t":
            value = value.long() + torch.arange(len(value))
            if not bool(((value >= 0) & (value < drafter.config.vocab_size)).all()):
                raise CheckpointError(
                    f"The weights in {where} map draft tokens outside the vocabulary",
                    found=f"d2t from {int(value.min())} to {int(value.max())}",
                    fix="Copy or export the checkpoint again",
                )
        state[key if key in own else f"backbone.{key}"] = value
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if wrong:
        raise CheckpointError(
            f"The weights in {where} do not match their config.json",
            found=", ".join(w.removeprefix("backbone.") for w in wrong[:4]),
            fix="Copy or export the checkpoint again",
        )
    drafter.load_state_dict(state, assign=as_stored)


class _NoInit(TorchFunctionMode):
    """Leaves out the first values of weights that are loaded next: half a second of draws."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def check_shared(tensors: dict[str, Tensor], target: Target, d2t: Tensor | None) -> None:
    """Compare a public checkpoint's own embedding and head with the target's.

    Raises:
        IncompatibleDrafterError: when they differ beyond rounding.
    """
    head = target.head_weight if d2t is None else target.head_weight[d2t]
    for key, theirs in zip(SHARED_KEYS, (target.embedding_weight, head), strict=True):
        mine = tensors.get(key)
        if mine is None:
            continue
        same = mine.shape == theirs.shape and torch.allclose(
            mine.float(), theirs.float().cpu(), atol=1e-2, rtol=2e-2
        )
        if not same:
            raise IncompatibleDrafterError(
                f"The drafter carries another {key} than the target",
                found=f"drafter {tuple(mine.shape)}, target {tuple(theirs.shape)}",
                fix="Use the target it was trained for",
            )


def load_drafter(
    folder: str | Path, target: Target, *, pack: bool = True, dtype: torch.dtype | None = None
) -> Drafter:
    """A drafter ready to draft for ``target``, on its device.

    Args:
        pack: lay the weights out for inference; training wants False.
        dtype: of weights and arithmetic, with `pack`; by default the target's.

    Raises:
        CheckpointError: for damaged or foreign files.
        IncompatibleDrafterError: for a drafter of another target.
    """
    config, tensors = read_checkpoint(folder)
    with _NoInit():
        drafter = make_drafter(config)
    load_state(drafter, tensors, str(folder), as_stored=pack)
    drafter.to(device=target.device, dtype=(dtype or target.dtype) if pack else None)
    drafter.bind(target)
    check_shared(tensors, target, drafter.d2t)
    if pack:
        drafter.eval().requires_grad_(False)
        pack_linears(drafter)
        drafter.load_companions(Path(folder), Path(folder) / WEIGHTS)
        drafter.folder, drafter.sha256 = Path(folder), sha256_file(Path(folder) / WEIGHTS)
    return drafter


def load_calibration(folder: Path, sha256: str) -> CalibrationTable | None:
    """The calibration table beside a drafter; None without one.

    Args:
        sha256: of the drafter's weights.

    Raises:
        DataError: it is damaged.
        IncompatibleDrafterError: it was made for other weights, or another confidence head.
    """
    table, head = folder / CALIBRATION, folder / CONFIDENCE
    if not table.exists():
        return None
    confidence = sha256_file(head) if head.exists() else ""
    return CalibrationTable.load(table, sha256=sha256, confidence=confidence)


def drafting_dtype(target: Target) -> torch.dtype:
    """What to draft in: bfloat16 for a float32 target too, where our kernels serve.

    Drafts are guesses, and half the bytes take half the time to read.
    """
    lighter = target.dtype is torch.float32 and target.device.type == "cpu"
    if lighter and native.kernels() is not None:
        return torch.bfloat16
    return target.dtype


def load_standalone(folder: str | Path) -> Drafter:
    """A public checkpoint bound to the embedding and head it carries itself.

    Raises:
        CheckpointError: when it carries none.
    """
    config, tensors = read_checkpoint(folder)
    drafter = make_drafter(config)
    load_state(drafter, tensors, str(folder))
    if any(key not in tensors for key in SHARED_KEYS):
        raise CheckpointError(f"{folder} carries no embedding or head", fix="Give its target too")
    embedding, head = (tensors[key] for key in SHARED_KEYS)
    drafter.bind_weights(SharedWeights(embedding, head))
    return drafter.eval()
