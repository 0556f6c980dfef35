"""Where a lean model's weights come from: a Hugging Face module, or a file of kept ones.

Names are those of the lean model's modules, as in `layers.3.qkv`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from dspark.attention.rotary import RopeTable
from dspark.targets.family import TargetSpec, rope_tables
from dspark.targets.layers import PackedLinear, RMSNorm

# Projections of one input as one product.
_LINEARS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_NORMS = {
    "norm_in": "input_layernorm",
    "norm_mlp_in": "post_attention_layernorm",
    "norm_q": "self_attn.q_norm",
    "norm_k": "self_attn.k_norm",
}
_SANDWICH_NORMS = _NORMS | {
    "norm_attention_out": "post_attention_layernorm",
    "norm_mlp_in": "pre_feedforward_layernorm",
    "norm_mlp_out": "post_feedforward_layernorm",
}


class LeanParts(ABC):
    """Weights of a lean model, one after the other."""

    @abstractmethod
    def linear(self, name: str) -> PackedLinear:
        """A product, its weight laid out for this machine."""

    @abstractmethod
    def norm(self, name: str) -> RMSNorm:
        """A norm, the family's offset added."""

    @abstractmethod
    def embedding(self) -> Tensor:
        """Input embedding [V, D]."""

    @abstractmethod
    def head(self) -> tuple[Tensor, PackedLinear]:
        """Language-model head [V, D] as it is, and laid out."""

    @abstractmethod
    def ropes(self) -> dict[str, RopeTable]:
        """Rotary tables by layer type."""


class ModuleParts(LeanParts):
    """Weights re-laid from a Hugging Face module, which can be dropped afterwards.

    Args:
        module: a causal language model.
        spec: its facts; ``spec.is_lean`` must hold.
        eight_bits: keep the weights of all products in bytes (``PackedLinear``).
    """

    def __init__(self, module: Any, spec: TargetSpec, eight_bits: bool = False) -> None:
        self._module, self._spec, self._eight_bits = module, spec, eight_bits
        # Checkpoints that also take pictures keep the text decoder one level deeper.
        self._decoder = getattr(module.model, "language_model", module.model)

    def linear(self, name: str) -> PackedLinear:
        index, own = name.removeprefix("layers.").split(".")
        layer = self._decoder.layers[int(index)]
        linears = [layer.get_submodule(path) for path in _LINEARS[own]]
        weights = [linear.weight.detach() for linear in linears]
        biases = [linear.bias for linear in linears]
        bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        return PackedLinear(whole, bias, self._eight_bits)

    def norm(self, name: str) -> RMSNorm:
        module = self._decoder
        if name.startswith("layers."):
            index, own = name.removeprefix("layers.").split(".")
            paths = _SANDWICH_NORMS if self._spec.sandwich_norms else _NORMS
            module, name = module.layers[int(index)], paths[own]
        weight = module.get_submodule(name).weight.detach()
        if self._spec.norm_offset:  # 1 + w in bfloat16 would lose w's low bits
            weight = weight.float() + self._spec.norm_offset
        return RMSNorm(weight.shape[0], self._spec.rms_norm_eps, weight)

    def embedding(self) -> Tensor:
        weight: Tensor = self._decoder.embed_tokens.weight
        return weight.detach()

    def head(self) -> tuple[Tensor, PackedLinear]:
        weight = self._module.get_output_embeddings().weight.detach()
        return weight, PackedLinear(weight, eight_bits=self._eight_bits)

    def ropes(self) -> dict[str, RopeTable]:
        return rope_tables(self._decoder.rotary_emb, self._spec)
