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

from dspark.artifacts import atomic_folder
from dspark.errors import CheckpointError, IncompatibleDrafterError
from dspark.models.drafter import Drafter, DrafterConfig, SharedWeights
from dspark.models.layers import PackedLinear, pack_linears
from dspark.models.registry import make_drafter
from dspark.models.target import Target

ARCHITECTURE = "Qwen3DSparkModel"
UNSUPPORTED = {"Gemma4DSparkModel": "its layers have another shape than this backbone"}
WEIGHTS, CONFIG = "model.safetensors", "config.json"
WHOLE_NUMBERS = (
    "hidden_size",
    "vocab_size",
    "num_target_layers",
    "mask_token_id",
    "block_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "markov_rank",
    "draft_vocab_size",
    "num_anchors",
)
SHARED_KEYS = ("embed_tokens.weight", "lm_head.weight")


def config_to_json(config: DrafterConfig, spec_fields: dict[str, Any]) -> dict[str, Any]:
    """DeepSpec's config fields of a drafter (architecture notes §5).

    Args:
        spec_fields: what the target adds (context length, initialisation, token ids).
    """
    fields: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
        "dspark_kind": config.kind,
        "target_name": config.target_name,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_target_layers": config.num_target_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "max_position_embeddings": config.max_positions,
        "layer_types": ["full_attention"] * config.num_layers,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "block_size": config.block_size,
        "mask_token_id": config.mask_token_id,
        "target_layer_ids": list(config.target_layer_ids),
        "num_anchors": config.num_anchors,
        "sample_from_anchor": config.sample_from_anchor,
        "markov_rank": config.markov_rank,
        "enable_confidence_head": config.confidence_head,
        "dtype": "bfloat16",
    }
    if config.markov_rank:
        fields["markov_head_type"] = config.markov_head_type
    if config.confidence_head:
        fields["confidence_head_with_markov"] = config.confidence_with_markov
    if config.draft_vocab_size:
        fields["draft_vocab_size"] = config.draft_vocab_size
    return fields | spec_fields


def config_from_json(fields: Any) -> DrafterConfig:
    """Read DeepSpec's config fields.

    Raises:
        CheckpointError: for an architecture that is not ours or a missing or unusable field.
    """
    if not isinstance(fields, dict):
        raise CheckpointError(
            "The drafter's config.json holds no fields",
            found=type(fields).__name__,
            fix="Export it again",
        )
    architecture = (fields.get("architectures") or ["none"])[0]
    if architecture != ARCHITECTURE:
        reason = UNSUPPORTED.get(architecture, "it is not a block drafter in DeepSpec's layout")
        raise CheckpointError(
            f"Cannot read a drafter of architecture {architecture}",
            found=reason,
            fix=f"Supported: {ARCHITECTURE}",
        )
    _check_fields(fields)
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    rank = fields.get("markov_rank", 0)
    confident = bool(fields.get("enable_confidence_head", False))
    kind = fields.get("dspark_kind") or ("dspark" if rank or confident else "dflash")
    try:
        return DrafterConfig(
            kind=kind,
            hidden_size=fields["hidden_size"],
            vocab_size=fields["vocab_size"],
            num_target_layers=fields["num_target_layers"],
            target_layer_ids=tuple(fields["target_layer_ids"]),
            mask_token_id=fields["mask_token_id"],
            block_size=fields["block_size"],
            num_layers=fields["num_hidden_layers"],
            num_heads=fields["num_attention_heads"],
            num_kv_heads=fields["num_key_value_heads"],
            head_dim=fields["head_dim"],
            intermediate_size=fields["intermediate_size"],
            rms_norm_eps=fields["rms_norm_eps"],
            rope_theta=rope.get("rope_theta") or fields["rope_theta"],
            max_positions=fields["max_position_embeddings"],
            markov_rank=rank,
            markov_head_type=fields.get("markov_head_type", "vanilla"),
            confidence_head=confident,
            confidence_with_markov=fields.get("confidence_head_with_markov", bool(rank)),
            draft_vocab_size=fields.get("draft_vocab_size"),
            num_anchors=fields.get("num_anchors", 512),
            sample_from_anchor=fields.get("sample_from_anchor", True),
            target_name=fields.get("target_name", ""),
        )
    except KeyError as error:
        raise CheckpointError(
            "The drafter's config.json lacks a field", found=f"no {error}", fix="Export it again"
        ) from error


def _check_fields(fields: dict[str, Any]) -> None:
    """Refuse values that would fail later, or would be passed over in silence."""
    for name in WHOLE_NUMBERS:
        value = fields.get(name)
        if value is not None and (type(value) is not int or value < 0):
            raise CheckpointError(
                f"The drafter's {name} is not a whole number", found=value, fix="Export it again"
            )
    taps = fields.get("target_layer_ids", [0])
    if not isinstance(taps, list) or not taps or any(type(tap) is not int for tap in taps):
        raise CheckpointError(
            "The drafter's target_layer_ids are not a list of layers",
            found=taps,
            fix="Export it again",
        )
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type") or "default") != "default":
        raise CheckpointError(
            "The drafter scales its rotary positions", found=rope, fix="Only plain rotary is read"
        )
    layers = set(fields.get("layer_types") or ()) - {"full_attention"}
    if layers or fields.get("hidden_act", "silu") != "silu":
        raise CheckpointError(
            "The drafter's layers are of another kind",
            found=", ".join(sorted(layers)) or fields["hidden_act"],
            fix="Only full attention with silu is read",
        )


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
    fields = config_to_json(drafter.config, {"dtype": name})
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
    return config_from_json(fields), tensors


def load_state(drafter: Drafter, tensors: dict[str, Tensor], where: str) -> None:
    """Put tensors with DeepSpec's names into a drafter; shapes and names must all match.

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
    drafter.load_state_dict(state)


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


def load_drafter(folder: str | Path, target: Target, *, pack: bool = True) -> Drafter:
    """A drafter ready to draft for ``target``, in the target's dtype and on its device.

    Args:
        pack: lay the weights out for inference; training wants False.

    Raises:
        CheckpointError: for damaged or foreign files.
        IncompatibleDrafterError: for a drafter of another target.
    """
    config, tensors = read_checkpoint(folder)
    drafter = make_drafter(config)
    load_state(drafter, tensors, str(folder))
    drafter.to(device=target.device, dtype=target.dtype if pack else None)
    drafter.bind(target)
    check_shared(tensors, target, drafter.d2t)
    if pack:
        drafter.eval().requires_grad_(False)
        pack_linears(drafter)
    return drafter


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
