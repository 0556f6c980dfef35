"""A drafter's ``config.json``: DeepSpec's fields, one architecture name a family of drafters.

MTP has no public layout there; its folder is for this project and says so in its architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from dspark.artifacts.values import number, whole_number
from dspark.drafters.drafter import DrafterConfig
from dspark.drafters.eagle3 import STEP_LOSS_DECAY
from dspark.drafters.heads import MARKOV_HEADS
from dspark.errors import CheckpointError

BLOCK, EAGLE3, MTP = "Qwen3DSparkModel", "Qwen3Eagle3Model", "DSparkMTPModel"
CHAINS = {"eagle3": EAGLE3, "mtp": MTP}  # by kind; all others are block drafters
UNSUPPORTED = {"Gemma4DSparkModel": "its layers have another shape than this backbone"}
REQUIRED = object()  # in place of a default


def config_to_json(config: DrafterConfig, spec_fields: dict[str, Any]) -> dict[str, Any]:
    """DeepSpec's config fields of a drafter (docs/formats.md, "Drafter folder").

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
    if config.candidates:
        fields["draft_candidates"] = config.candidates
    if config.confidence_head:
        fields["confidence_head_with_markov"] = config.confidence_with_markov
    return fields


def config_from_json(fields: Any, where: str = "config.json") -> DrafterConfig:
    """Read DeepSpec's config fields.

    Args:
        where: the file, for its mistakes.

    Raises:
        CheckpointError: for an architecture that is not ours or a missing or unusable field; it
            names file, key and value.
    """
    if not isinstance(fields, dict):
        raise CheckpointError(
            f"{where} holds no fields", found=type(fields).__name__, fix="Export it again"
        )
    given = _Fields(fields, where)
    architecture = given.architecture()
    _check_layers(given)
    own = _read_block(given) if architecture == BLOCK else _read_chain(given, architecture)
    heads, kv_heads = given.whole("num_attention_heads"), given.whole("num_key_value_heads")
    if heads % kv_heads:
        raise given.refusal("num_key_value_heads", f"no divisor of {heads} heads")
    head_dim = given.whole("head_dim")
    if head_dim % 2:
        raise given.refusal("head_dim", "odd, and rotary positions turn pairs")
    vocabulary = given.whole("vocab_size")
    reduced = given.whole("draft_vocab_size", default=None)
    if reduced is not None and reduced > vocabulary:
        raise given.refusal("draft_vocab_size", f"more than the vocabulary of {vocabulary}")
    return DrafterConfig(
        hidden_size=given.whole("hidden_size"),
        vocab_size=vocabulary,
        num_target_layers=given.whole("num_target_layers"),
        target_layer_ids=given.taps(may_be_none=architecture == MTP),
        num_layers=given.whole("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=given.whole("intermediate_size"),
        rms_norm_eps=given.number("rms_norm_eps"),
        rope_theta=_rope_theta(given),
        max_positions=given.whole("max_position_embeddings"),
        draft_vocab_size=reduced,
        target_name=given.text("target_name", default=""),
        **own,
    )


def _read_chain(given: _Fields, architecture: str) -> dict[str, Any]:
    kind = "mtp" if architecture == MTP else "eagle3"
    length = given.whole("block_size" if kind == "mtp" else "ttt_length")
    return {"kind": kind, "mask_token_id": None, "block_size": length}


def _read_block(given: _Fields) -> dict[str, Any]:
    rank = given.whole("markov_rank", least=0, default=0)
    confident = given.flag("enable_confidence_head", default=False)
    candidates = given.whole("draft_candidates", default=0)
    if candidates and not rank:
        raise given.refusal("draft_candidates", "given, and there is no sequential head to score")
    likely = "dspark" if rank or confident else "dflash"
    return {
        "kind": given.text("dspark_kind", default=likely),
        "mask_token_id": given.whole("mask_token_id", least=0),
        "block_size": given.whole("block_size"),
        "markov_rank": rank,
        "markov_head_type": given.text("markov_head_type", default="vanilla", among=MARKOV_HEADS),
        "candidates": candidates,
        "confidence_head": confident,
        "confidence_with_markov": given.flag("confidence_head_with_markov", default=bool(rank)),
        "num_anchors": given.whole("num_anchors", default=512),
        "sample_from_anchor": given.flag("sample_from_anchor", default=True),
    }


class _Fields:
    """The fields of one file, read one by one; null is as good as none.

    Every reader raises CheckpointError: a field is missing, or its value is of no use.
    """

    def __init__(self, given: dict[str, Any], where: str) -> None:
        self.given, self.where = given, where

    def refusal(self, name: str, why: str) -> CheckpointError:
        """The error about a value."""
        what = f"{self.where}: {name} is {why}"
        return CheckpointError(what, found=self.given.get(name), fix="Export the drafter again")

    def whole(self, name: str, least: int = 1, default: Any = REQUIRED) -> Any:
        return self._checked(name, default, lambda value: whole_number(value, "it", least))

    def number(self, name: str, default: Any = REQUIRED) -> Any:
        return self._checked(name, default, lambda value: number(value, "it", above=True))

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, "neither true nor false")
        return value

    def text(self, name: str, default: str, among: Collection[str] | None = None) -> str:
        value = self.get(name, default)
        if not isinstance(value, str) or (among is not None and value not in among):
            raise self.refusal(name, f"none of {', '.join(among)}" if among else "no text")
        return value

    def architecture(self) -> str:
        """The first of those named, which must be one of ours."""
        names = self.get("architectures", ["none"]) or ["none"]
        name = names[0] if isinstance(names, list) else names
        if name not in (BLOCK, EAGLE3, MTP):
            reason = UNSUPPORTED.get(str(name), "it is not a drafter in DeepSpec's layout")
            raise CheckpointError(
                f"{self.where}: cannot read a drafter of architecture {name}",
                found=reason,
                fix=f"Supported: {BLOCK}, {EAGLE3}, {MTP}",
            )
        return str(name)

    def taps(self, may_be_none: bool) -> tuple[int, ...]:
        """Target layers to tap."""
        taps = self.get("target_layer_ids", REQUIRED)
        if not isinstance(taps, list) or any(type(tap) is not int for tap in taps):
            raise self.refusal("target_layer_ids", "not a list of layers")
        if not (taps or may_be_none) or len(set(taps)) < len(taps):
            raise self.refusal("target_layer_ids", "a list with a layer twice" if taps else "empty")
        return tuple(taps)

    def get(self, name: str, default: Any) -> Any:
        """A value as it stands."""
        value = self.given.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            found = f"no {name!r}" if name not in self.given else f"{name!r} is null"
            raise CheckpointError(
                f"{self.where} lacks a field", found=found, fix="Export the drafter again"
            )
        return default

    def _checked(self, name: str, default: Any, check: Callable[[Any], Any]) -> Any:
        value = self.get(name, default)
        try:
            return value if value is default else check(value)
        except ValueError as error:
            why = str(error).partition(", ")[2]
            raise self.refusal(name, why) from error


def _rope_theta(given: _Fields) -> float:
    """The rotary base; every place that may scale positions is looked at, not the first alone."""
    bases = {}
    for name in ("rope_parameters", "rope_scaling"):
        rope = given.get(name, {})
        if not isinstance(rope, dict):
            raise given.refusal(name, "no object")
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind != "default" or rope.get("factor", 1) not in (None, 1):
            raise given.refusal(name, "a scaling of rotary positions, and only plain ones are read")
        inner = _Fields(rope, f"{given.where}: {name}")
        if (base := inner.number("rope_theta", default=None)) is not None:
            bases[f"{name}.rope_theta"] = base
    if not bases or given.given.get("rope_theta") is not None:
        bases["rope_theta"] = given.number("rope_theta")
    if len(set(bases.values())) > 1:
        raise CheckpointError(
            f"{given.where}: {' and '.join(bases)} differ",
            found=", ".join(f"{base:g}" for base in bases.values()),
            fix="Leave the wrong one out",
        )
    return min(bases.values())


def _check_layers(given: _Fields) -> None:
    """Refuse what would be passed over in silence: layers of another kind than the backbone's."""
    for name, plain in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("use_sliding_window", False),
        ("partial_rotary_factor", 1),
    ):
        if given.get(name, plain) != plain:
            raise given.refusal(name, f"not read; it must be {str(plain).lower()}")
    kinds = given.get("layer_types", [])
    if not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention"}:
        raise given.refusal("layer_types", "not read; all must be full_attention")
