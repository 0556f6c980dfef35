"""A drafter's ``config.json``: DeepSpec's fields, one architecture name a family of drafters.

MTP has no public layout there; its folder is for this project and says so in its architecture.
"""

from __future__ import annotations

from typing import Any

from dspark.errors import CheckpointError
from dspark.models.drafter import DrafterConfig
from dspark.models.eagle3 import STEP_LOSS_DECAY

BLOCK, EAGLE3, MTP = "Qwen3DSparkModel", "Qwen3Eagle3Model", "DSparkMTPModel"
CHAINS = {"eagle3": EAGLE3, "mtp": MTP}  # by kind; all others are block drafters
UNSUPPORTED = {"Gemma4DSparkModel": "its layers have another shape than this backbone"}
WHOLE_NUMBERS = (
    "hidden_size",
    "vocab_size",
    "num_target_layers",
    "mask_token_id",
    "block_size",
    "ttt_length",
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


def config_to_json(config: DrafterConfig, spec_fields: dict[str, Any]) -> dict[str, Any]:
    """DeepSpec's config fields of a drafter (architecture notes §5).

    Args:
        spec_fields: what the target adds (context length, initialisation, token ids).
    """
    fields: dict[str, Any] = {
        "architectures": [CHAINS.get(config.kind, BLOCK)],
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
        "target_layer_ids": list(config.target_layer_ids),
        "dtype": "bfloat16",
    }
    fields |= _chain_fields(config) if config.kind in CHAINS else _block_fields(config)
    if config.draft_vocab_size:
        fields["draft_vocab_size"] = config.draft_vocab_size
    return fields | spec_fields


def _chain_fields(config: DrafterConfig) -> dict[str, Any]:
    if config.kind == "mtp":
        return {"block_size": config.block_size}
    return {
        "ttt_length": config.block_size,
        "step_loss_decay": STEP_LOSS_DECAY,
        "draft_num_hidden_layers": config.num_layers,
    }


def _block_fields(config: DrafterConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "block_size": config.block_size,
        "mask_token_id": config.mask_token_id,
        "num_anchors": config.num_anchors,
        "sample_from_anchor": config.sample_from_anchor,
        "markov_rank": config.markov_rank,
        "enable_confidence_head": config.confidence_head,
    }
    if config.markov_rank:
        fields["markov_head_type"] = config.markov_head_type
    if config.confidence_head:
        fields["confidence_head_with_markov"] = config.confidence_with_markov
    return fields


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
    if architecture not in (BLOCK, EAGLE3, MTP):
        reason = UNSUPPORTED.get(architecture, "it is not a drafter in DeepSpec's layout")
        raise CheckpointError(
            f"Cannot read a drafter of architecture {architecture}",
            found=reason,
            fix=f"Supported: {BLOCK}, {EAGLE3}, {MTP}",
        )
    _check_fields(fields)
    try:
        own = _read_block(fields) if architecture == BLOCK else _read_chain(fields, architecture)
        rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
        return DrafterConfig(
            hidden_size=fields["hidden_size"],
            vocab_size=fields["vocab_size"],
            num_target_layers=fields["num_target_layers"],
            target_layer_ids=tuple(fields["target_layer_ids"]),
            num_layers=fields["num_hidden_layers"],
            num_heads=fields["num_attention_heads"],
            num_kv_heads=fields["num_key_value_heads"],
            head_dim=fields["head_dim"],
            intermediate_size=fields["intermediate_size"],
            rms_norm_eps=fields["rms_norm_eps"],
            rope_theta=rope.get("rope_theta") or fields["rope_theta"],
            max_positions=fields["max_position_embeddings"],
            draft_vocab_size=fields.get("draft_vocab_size"),
            target_name=fields.get("target_name", ""),
            **own,
        )
    except KeyError as error:
        raise CheckpointError(
            "The drafter's config.json lacks a field", found=f"no {error}", fix="Export it again"
        ) from error


def _read_chain(fields: dict[str, Any], architecture: str) -> dict[str, Any]:
    kind = "mtp" if architecture == MTP else "eagle3"
    length = fields["block_size" if kind == "mtp" else "ttt_length"]
    return {"kind": kind, "mask_token_id": None, "block_size": length}


def _read_block(fields: dict[str, Any]) -> dict[str, Any]:
    rank = fields.get("markov_rank", 0)
    confident = bool(fields.get("enable_confidence_head", False))
    return {
        "kind": fields.get("dspark_kind") or ("dspark" if rank or confident else "dflash"),
        "mask_token_id": fields["mask_token_id"],
        "block_size": fields["block_size"],
        "markov_rank": rank,
        "markov_head_type": fields.get("markov_head_type", "vanilla"),
        "confidence_head": confident,
        "confidence_with_markov": fields.get("confidence_head_with_markov", bool(rank)),
        "num_anchors": fields.get("num_anchors", 512),
        "sample_from_anchor": fields.get("sample_from_anchor", True),
    }


def _check_fields(fields: dict[str, Any]) -> None:
    """Refuse values that would fail later, or would be passed over in silence."""
    for name in WHOLE_NUMBERS:
        value = fields.get(name)
        if value is not None and (type(value) is not int or value < 0):
            raise CheckpointError(
                f"The drafter's {name} is not a whole number", found=value, fix="Export it again"
            )
    taps = fields.get("target_layer_ids", [])
    tapless = fields["architectures"][0] == MTP
    wrong = not isinstance(taps, list) or any(type(tap) is not int for tap in taps)
    if wrong or ("target_layer_ids" in fields and not taps and not tapless):
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
