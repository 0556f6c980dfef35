"""Whole decoder layers in one call (``layer.cpp``).

Suffixes: T packed rows, D hidden, O outputs of a product, P head_dim.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dspark.native.ops import DTYPES, LANES, Packed, kernels


class _Layer(Structure):
    """``kernels.h``, Layer."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("norm_in", "qkv", "qkv_bias", "norm_q", "norm_k")]
        + [(name, ctypes.c_void_p) for name in ("out", "out_bias", "norm_mlp", "gate_up")]
        + [(name, ctypes.c_void_p) for name in ("gate_up_bias", "down", "down_bias")]
        + [(name, ctypes.c_long) for name in ("hidden", "heads", "kv_heads", "size", "inner")]
        + [(name, ctypes.c_int) for name in ("is_bf16", "silu")]
        + [(name, ctypes.c_float) for name in ("eps", "scale")]
    )


class _Batch(Structure):
    """``kernels.h``, Batch."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("cos", "sin", "slots", "positions")]
        + [(name, ctypes.c_void_p) for name in ("firsts", "stops")]
        + [(name, ctypes.c_long) for name in ("rows", "cache_slots", "max_len")]
        + [("threads", ctypes.c_int)]
    )


@dataclass(frozen=True)
class LayerParts:
    """Weights of one pre-norm layer with a gated MLP.

    Attributes:
        norm_in, norm_mlp: [D].
        qkv, out, gate_up, down: packed products.
        qkv_bias, out_bias, gate_up_bias, down_bias: [O], where there are any.
        norm_q, norm_k: [P], where queries and keys are normed.
        heads, kv_heads, head_dim, eps, scale: sizes; the norms' epsilon; factor on scores.
        silu: the gate's activation; else GELU's tanh form.
    """

    norm_in: Tensor
    qkv: Packed | None
    out: Packed | None
    norm_mlp: Tensor
    gate_up: Packed | None
    down: Packed | None
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scale: float
    qkv_bias: Tensor | None = None
    out_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    norm_q: Tensor | None = None
    norm_k: Tensor | None = None
    silu: bool = True


class NativeLayer:
    """One layer's weights as the kernel reads them."""

    def __init__(self, parts: LayerParts) -> None:
        assert parts.qkv and parts.out and parts.gate_up and parts.down
        self.parts = parts  # what the addresses below point to
        address = lambda tensor: None if tensor is None else tensor.data_ptr()  # noqa: E731
        self._words = _Layer(
            norm_in=address(parts.norm_in),
            qkv=address(parts.qkv.data),
            qkv_bias=address(parts.qkv_bias),
            norm_q=address(parts.norm_q),
            norm_k=address(parts.norm_k),
            out=address(parts.out.data),
            out_bias=address(parts.out_bias),
            norm_mlp=address(parts.norm_mlp),
            gate_up=address(parts.gate_up.data),
            gate_up_bias=address(parts.gate_up_bias),
            down=address(parts.down.data),
            down_bias=address(parts.down_bias),
            hidden=parts.qkv.columns,
            heads=parts.heads,
            kv_heads=parts.kv_heads,
            size=parts.head_dim,
            inner=parts.down.columns,
            is_bf16=DTYPES[parts.norm_in.dtype],
            silu=int(parts.silu),
            eps=parts.eps,
            scale=parts.scale,
        )

    @classmethod
    def of(cls, parts: LayerParts) -> NativeLayer | None:
        """The layer, or None where the kernels do not serve it."""
        products = (parts.qkv, parts.out, parts.gate_up, parts.down)
        norms = (parts.norm_in, parts.norm_mlp, parts.norm_q, parts.norm_k)
        if any(product is None for product in products) or parts.head_dim % LANES:
            return None
        assert parts.qkv is not None
        dtype = parts.qkv.data.dtype
        return cls(parts) if all(n is None or n.dtype is dtype for n in norms) else None


class NativeBatch:
    """The rows of one forward as the kernel reads them.

    Args:
        tables: cosines and sines [T, 1, P] (``models.layers.rotary``).
        slots_T, positions_T: where each row belongs.
        seen: for each row the first position it sees, and the one after the last.
        cache_slots, max_len: of the cache.
    """

    def __init__(
        self,
        tables: tuple[Tensor, Tensor],
        slots_T: Tensor,
        positions_T: Tensor,
        seen: tuple[Tensor, Tensor],
        cache_slots: int,
        max_len: int,
    ) -> None:
        self._held: Any = (tables, slots_T, positions_T, seen)  # what the addresses point to
        self._words = _Batch(
            *(x.data_ptr() for x in (*tables, slots_T, positions_T, *seen)),
            len(slots_T),
            cache_slots,
            max_len,
            torch.get_num_threads(),
        )

    def run(self, layer: NativeLayer, x_TD: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The layer's output [T, D]; the rows' keys and values join its cache."""
        x_TD = x_TD.contiguous()
        y_TD = torch.empty_like(x_TD)
        failed = kernels().dspark_layer(
            ctypes.byref(layer._words),
            ctypes.byref(self._words),
            x_TD.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            y_TD.data_ptr(),
        )
        assert not failed, "rows outside of the cache"
        return y_TD
