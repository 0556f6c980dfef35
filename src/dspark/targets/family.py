"""What differs between model families, as data.

A family here is a decoder layout that the lean forward can run: Llama, Qwen3 and Gemma 3. Any
other architecture runs through its Hugging Face module (``hf_target``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from dspark.attention.rotary import RopeTable

LEAN_MODEL_TYPES = ("llama", "qwen3", "gemma3_text")
LEAN_ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """The facts of a target that drafters, caches and the lean forward need.

    Attributes:
        layer_windows: per layer the sliding window in tokens (the query included), or None for
            full attention.
        embed_scale: factor on the embedding's output (Gemma).
        logit_softcap: c in ``c·tanh(logits / c)``, or None.
        logit_scale: factor on the head's output (Cohere, Granite).
        norm_offset: added to every norm weight (Gemma stores w - 1).
        sandwich_norms: a second norm after attention and after the MLP (Gemma).
    """

    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    max_positions: int
    activation: str = "silu"
    attention_scale: float = 0.125
    embed_scale: float = 1.0
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    norm_offset: float = 0.0
    qk_norm: bool = False
    sandwich_norms: bool = False
    layer_windows: tuple[int | None, ...] = ()
    layer_types: tuple[str, ...] = field(default=())

    @property
    def is_lean(self) -> bool:
        """Whether the lean forward can run this family."""
        return self.model_type in LEAN_MODEL_TYPES and self.activation in LEAN_ACTIVATIONS


def text_config(config: Any) -> Any:
    """The language part of a Hugging Face config (itself for text-only models)."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def spec_from_config(config: Any) -> TargetSpec:
    """Read a Hugging Face config into a :class:`TargetSpec`."""
    config = text_config(config)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    gemma = config.model_type == "gemma3_text"
    types = tuple(getattr(config, "layer_types", None) or ["full_attention"] * layers)
    window = getattr(config, "sliding_window", None)
    scale_base = getattr(config, "query_pre_attn_scalar", None) if gemma else head_dim
    return TargetSpec(
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocab_size=config.vocab_size,
        rms_norm_eps=getattr(config, "rms_norm_eps", 1e-6),
        max_positions=getattr(config, "max_position_embeddings", 2048),
        activation=str(
            getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "silu")
        ),
        attention_scale=float(scale_base or head_dim) ** -0.5,
        embed_scale=float(config.hidden_size) ** 0.5 if gemma else 1.0,
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        logit_scale=float(getattr(config, "logit_scale", None) or 1.0)
        / float(getattr(config, "logits_scaling", None) or 1.0),
        norm_offset=1.0 if gemma else 0.0,
        qk_norm=gemma or config.model_type == "qwen3",
        sandwich_norms=gemma,
        layer_windows=tuple(window if t == "sliding_attention" else None for t in types),
        layer_types=types,
    )


def rope_theta(config: Any) -> float:
    """Base of the rotary frequencies (the full-attention layers' where there are two)."""
    parameters = getattr(text_config(config), "rope_parameters", None) or {}
    table = parameters.get("full_attention", parameters)
    return float(table.get("rope_theta", 10_000.0)) if isinstance(table, dict) else 10_000.0


def rope_tables(rotary: nn.Module, spec: TargetSpec) -> dict[str, RopeTable]:
    """Rotary tables by layer type, taken from the Hugging Face module so that every scaling
    scheme it knows (linear, llama3, yarn, …) carries over."""
    from dspark.attention.rotary import (
        RopeTable,  # brings PyTorch, which checks of arguments do without
    )

    tables = {}
    for kind in dict.fromkeys(spec.layer_types):
        prefix = f"{kind}_" if hasattr(rotary, f"{kind}_inv_freq") else ""
        inv_freq = getattr(rotary, f"{prefix}inv_freq").detach().float().clone()
        tables[kind] = RopeTable(inv_freq, float(getattr(rotary, f"{prefix}attention_scaling", 1)))
    return tables
