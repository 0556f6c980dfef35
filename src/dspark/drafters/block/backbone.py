"""The parallel backbone: one pass drafts a whole block (DSpark §2, eqs. 2 and 3).

Layers are pre-norm with QK-norm, rotary, grouped-query attention and SwiGLU (the Qwen3 shape).
Keys and values of every layer are those of [projected taps ; block states]; queries come from the
block. Block slots see all context strictly before their anchor and each other in both directions.

Suffixes: T context rows, N block rows, H heads, P head_dim, D hidden, M taps x D.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dspark import native
from dspark.attention.kv_cache import KVCache
from dspark.attention.ragged import CachedAttention
from dspark.attention.rotary import RopeTable, rotary, rotate
from dspark.drafters.config import DrafterConfig
from dspark.native import LayerParts, NativeBatch, NativeContext, NativeStack, pack
from dspark.targets.layers import RMSNorm

Heads = tuple[Tensor, Tensor]
BlockAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class DraftAttention(nn.Module):
    """Projections, QK-norm and rotary of one draft layer."""

    def __init__(self, config: DrafterConfig, input_size: int | None = None) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        size = input_size or config.hidden_size
        q_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(size, q_size, bias=False)
        self.k_proj = nn.Linear(size, kv_size, bias=False)
        self.v_proj = nn.Linear(size, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated queries [N, H, P]."""
        return rotate(self.q_norm(self.q_proj(x).view(len(x), -1, self.head_dim)), cos, sin)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> Heads:
        """Rotated keys and values [N, kv_heads, P] of context features or block states."""
        keys = rotate(self.k_norm(self.k_proj(x).view(len(x), -1, self.head_dim)), cos, sin)
        return keys, self.v_proj(x).view(len(x), -1, self.head_dim)


class DraftMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DraftLayer(nn.Module):
    """One draft layer; attention over context and block is the caller's."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.self_attn = DraftAttention(config)
        self.mlp = DraftMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.config = config

    def parts(self) -> LayerParts:
        """The weights as the kernels take them."""
        attention, mlp, config = self.self_attn, self.mlp, self.config
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        together = lambda *linears: torch.cat([m.weight.detach() for m in linears])  # noqa: E731
        return LayerParts(
            norm_in=self.input_layernorm.weight.detach(),
            qkv=pack(together(*projections)),
            out=pack(attention.o_proj.weight.detach()),
            norm_mlp=self.post_attention_layernorm.weight.detach(),
            gate_up=pack(together(mlp.gate_proj, mlp.up_proj)),
            down=pack(mlp.down_proj.weight.detach()),
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
            scale=config.head_dim**-0.5,
            norm_q=attention.q_norm.weight.detach(),
            norm_k=attention.k_norm.weight.detach(),
        )

    def forward(
        self, index: int, x_ND: Tensor, cos: Tensor, sin: Tensor, attend: BlockAttention
    ) -> Tensor:
        normed = self.input_layernorm(x_ND)
        attention = self.self_attn
        queries = attention.queries(normed, cos, sin)
        mixed = attend(index, queries, *attention.keys_values(normed, cos, sin))
        x_ND = x_ND + attention.o_proj(mixed)
        return x_ND + self.mlp(self.post_attention_layernorm(x_ND))


class ParallelBackbone(nn.Module):
    """Context projection and draft layers; parameter names are DeepSpec's."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.fc = nn.Linear(len(config.target_layer_ids) * size, size, bias=False)
        self.hidden_norm = RMSNorm(size, config.rms_norm_eps)
        self.layers = nn.ModuleList(DraftLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(size, config.rms_norm_eps)
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.rope = RopeTable(1.0 / config.rope_theta**half)
        self.stack: NativeStack | None = None
        self.joint: NativeContext | None = None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    def fuse(self) -> None:
        """Join weights for inference into kernels, where those serve them."""
        layers: list[DraftLayer] = list(self.layers)  # type: ignore[arg-type]
        self.stack = NativeStack.of([layer.parts() for layer in layers])
        attentions = [layer.self_attn for layer in layers]
        projections = [p.weight.detach() for a in attentions for p in (a.k_proj, a.v_proj)]
        fc, kv = pack(self.fc.weight.detach()), pack(torch.cat(projections))
        if self.stack is None or fc is None or kv is None:
            return
        norms_k = [attention.k_norm.weight.detach() for attention in attentions]
        norm, heads = self.hidden_norm, layers[0].config.num_kv_heads
        self.joint = NativeContext(fc, norm.weight.detach(), kv, norms_k, heads, norm.eps)

    def extend(self, cache: KVCache, taps_TM: Tensor, slots_T: Tensor, positions_T: Tensor) -> None:
        """Keys and values of committed positions join the cache (eqs. 2 and 3)."""
        if self.joint is None or not native.serves(taps_TM):
            places = cache.places(slots_T, positions_T)
            heads = self.context_heads(self.context(taps_TM), positions_T)
            for layer, (keys, values) in enumerate(heads):
                cache.write(layer, places, keys, values)
            return
        tables = rotary(positions_T, self.rope, taps_TM.dtype)
        batch = NativeBatch(tables, slots_T, positions_T, None, cache.slots, cache.max_len)
        batch.write(self.joint, taps_TM, *cache.addresses)

    def context(self, taps_TM: Tensor) -> Tensor:
        """H_ctx = RMSNorm(W_c taps), [T, D] (eq. 2)."""
        return self.hidden_norm(self.fc(taps_TM))

    def context_heads(self, context_TD: Tensor, positions_T: Tensor) -> list[Heads]:
        """Each layer's keys and values of the context, never changed afterwards (eq. 3)."""
        cos, sin = rotary(positions_T, self.rope, context_TD.dtype)
        attentions: list[DraftAttention] = [layer.self_attn for layer in self.layers]  # type: ignore[misc]
        return [a.keys_values(context_TD, cos, sin) for a in attentions]

    def forward(self, x_ND: Tensor, positions_N: Tensor, attend: BlockAttention) -> Tensor:
        """Block states [N, D] through all layers and the final norm."""
        cos, sin = rotary(positions_N, self.rope, x_ND.dtype)
        if self.stack and isinstance(attend, CachedAttention) and attend.can_run:
            return self.norm(attend.run(self.stack, x_ND, (cos, sin))[0])
        for index, layer in enumerate(self.layers):
            x_ND = layer(index, x_ND, cos, sin, attend)
        return self.norm(x_ND)
