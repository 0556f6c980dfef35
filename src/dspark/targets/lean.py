"""A lean forward for Llama, Qwen3 and Gemma 3 shapes: same weights, fewer and larger operations.

Query, key and value are one product, gate and up another; the residual is added inside the output
product; weights are packed once. Equal to the Hugging Face module up to rounding
(``tests/targets/test_lean.py``).

Suffixes: T packed rows, D hidden, H heads, P head_dim, M taps x D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dspark.attention.ragged import CachedAttention
from dspark.attention.rotary import rotary, rotate
from dspark.native import LayerParts, NativeStack
from dspark.targets.family import TargetSpec
from dspark.targets.layers import RMSNorm, gated
from dspark.targets.lean_parts import LeanParts

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Rotary = dict[str, tuple[Tensor, Tensor]]


def _apply_norm(norm: RMSNorm, x: Tensor) -> Tensor:
    if norm.weight.dtype == x.dtype:
        return norm(x)
    return norm(x.float()).to(x.dtype)


class LeanLayer(nn.Module):
    """One decoder layer, number ``index`` of those that ``parts`` holds."""

    def __init__(self, index: int, spec: TargetSpec, parts: LeanParts) -> None:
        super().__init__()
        self.spec = spec
        linear = lambda name: parts.linear(f"layers.{index}.{name}")  # noqa: E731
        norm = lambda name: parts.norm(f"layers.{index}.{name}")  # noqa: E731
        self.qkv, self.out = linear("qkv"), linear("out")
        self.gate_up, self.down = linear("gate_up"), linear("down")
        self.norm_in, self.norm_mlp_in = norm("norm_in"), norm("norm_mlp_in")
        if spec.sandwich_norms:
            self.norm_attention_out = norm("norm_attention_out")
            self.norm_mlp_out = norm("norm_mlp_out")
        if spec.qk_norm:
            self.norm_q, self.norm_k = norm("norm_q"), norm("norm_k")

    def parts(self) -> LayerParts:
        """The weights as the kernels take them; only without sandwich norms."""
        spec = self.spec
        return LayerParts(
            norm_in=self.norm_in.weight.detach(),
            qkv=self.qkv.packed,
            out=self.out.packed,
            norm_mlp=self.norm_mlp_in.weight.detach(),
            gate_up=self.gate_up.packed,
            down=self.down.packed,
            heads=spec.num_heads,
            kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            eps=spec.rms_norm_eps,
            scale=spec.attention_scale,
            qkv_bias=self.qkv.bias,
            out_bias=self.out.bias,
            gate_up_bias=self.gate_up.bias,
            down_bias=self.down.bias,
            norm_q=self.norm_q.weight.detach() if spec.qk_norm else None,
            norm_k=self.norm_k.weight.detach() if spec.qk_norm else None,
            silu=spec.activation == "silu",
        )

    def heads(self, x_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [T, H, P] and keys, and values, of the normed input."""
        spec = self.spec
        q_heads, kv_heads = spec.num_heads, spec.num_kv_heads
        qkv = self.qkv(_apply_norm(self.norm_in, x_TD)).view(len(x_TD), -1, spec.head_dim)
        qk, v = qkv[:, : q_heads + kv_heads], qkv[:, q_heads + kv_heads :]
        if spec.qk_norm:
            q, k = qk[:, :q_heads], qk[:, q_heads:]
            qk = torch.cat([_apply_norm(self.norm_q, q), _apply_norm(self.norm_k, k)], 1)
        qk = rotate(qk, cos, sin)
        return qk[:, :q_heads], qk[:, q_heads:], v

    def feed_forward(self, x_TD: Tensor) -> Tensor:
        """The gated MLP's last input: activation(gate) · up, [T, intermediate]."""
        return gated(self.gate_up(x_TD), self.spec.activation)

    def forward(
        self, index: int, x_TD: Tensor, cos: Tensor, sin: Tensor, attend: Attention
    ) -> Tensor:
        mixed = attend(index, *self.heads(x_TD, cos, sin))
        if self.spec.sandwich_norms:
            x_TD = x_TD + _apply_norm(self.norm_attention_out, self.out(mixed))
            hidden = self.feed_forward(_apply_norm(self.norm_mlp_in, x_TD))
            return x_TD + _apply_norm(self.norm_mlp_out, self.down(hidden))
        x_TD = self.out(mixed, x_TD)
        return self.down(self.feed_forward(_apply_norm(self.norm_mlp_in, x_TD)), x_TD)


class LeanModel(nn.Module):
    """The decoder stack of a target without its head, over flattened rows.

    Args:
        spec: the target's facts; ``spec.is_lean`` must hold.
        parts: where its weights come from.
    """

    def __init__(self, spec: TargetSpec, parts: LeanParts) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = parts.embedding()
        self.layers = nn.ModuleList(LeanLayer(i, spec, parts) for i in range(spec.num_layers))
        self.norm = parts.norm("norm")
        uniform = not spec.sandwich_norms and len(set(spec.layer_types)) == 1
        own = [layer.parts() for layer in self.layers] if uniform else []  # type: ignore[operator]
        self.stack = NativeStack.of(own)
        self.ropes = parts.ropes()

    def embed(self, ids_T: Tensor) -> Tensor:
        """Input embedding [T, D], the family's scale applied."""
        x_TD = F.embedding(ids_T, self.embedding)
        if self.spec.embed_scale != 1.0:  # rounded to the weights' type, as the family does
            x_TD = x_TD * torch.tensor(self.spec.embed_scale, dtype=x_TD.dtype)
        return x_TD

    def rotary(self, positions_T: Tensor) -> Rotary:
        """Cosines and sines at these positions, by kind of layer."""
        dtype = self.embedding.dtype
        return {kind: rotary(positions_T, table, dtype) for kind, table in self.ropes.items()}

    def forward(
        self,
        ids_T: Tensor,
        positions_T: Tensor,
        attend: Attention,
        tap_ids: Sequence[int] = (),
        tables: Rotary | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run all rows; ``tables`` is what `rotary` gives where the caller has it already.

        Returns:
            The final-normed last state [T, D] and the taps [T, len(tap_ids) · D], each the raw
            output of a layer, in the order of ``tap_ids`` (None when there are none).
        """
        x_TD = self.embed(ids_T)
        tables = self.rotary(positions_T) if tables is None else tables
        if self.stack and isinstance(attend, CachedAttention) and attend.can_run:
            kind = self.spec.layer_types[0]
            x_TD, taps = attend.run(self.stack, x_TD, tables[kind], tap_ids)
        else:
            x_TD, taps = self._by_layer(x_TD, attend, tap_ids, tables)
        tapped = torch.cat([taps[i] for i in tap_ids], -1) if tap_ids else None
        return _apply_norm(self.norm, x_TD), tapped

    def _by_layer(
        self, x_TD: Tensor, attend: Attention, tap_ids: Sequence[int], tables: Rotary
    ) -> tuple[Tensor, dict[int, Tensor]]:
        taps: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            cos, sin = tables[self.spec.layer_types[index]]
            x_TD = layer(index, x_TD, cos, sin, attend)
            if index in tap_ids:
                taps[index] = x_TD
        return x_TD, taps
