"""Whole decoder layers in one call (``layers.h``).

Suffixes: T packed rows, D hidden, O outputs of a product, P head_dim.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dspark.native.levels import kernels
from dspark.native.ops import DTYPES, PANEL, Packed

_Fields = list[tuple[str, type[Any]]]


def _fields(**kinds: str) -> _Fields:
    """Fields of a C structure in order: a ctypes name, and the names of that type."""
    return [
        (name, getattr(ctypes, kind)) for kind, names in kinds.items() for name in names.split()
    ]


class _Layer(Structure):
    """``table.h``, Layer."""

    _fields_: ClassVar[_Fields] = _fields(
        c_void_p="qkv out gate_up down norm_in qkv_bias norm_q norm_k out_bias norm_mlp "
        "gate_up_bias down_bias",
        c_long="hidden heads kv_heads size inner",
        c_int="is_bf16 silu",
        c_float="eps scale",
    )


class _Context(Structure):
    """``table.h``, Context."""

    _fields_: ClassVar[_Fields] = _fields(
        c_void_p="fc kv norm norms_k",
        c_long="hidden layers kv_heads size",
        c_int="is_bf16",
        c_float="eps",
    )


class _Batch(Structure):
    """``table.h``, Batch."""

    _fields_: ClassVar[_Fields] = _fields(
        c_void_p="cos sin slots positions firsts stops",
        c_long="rows cache_slots max_len",
        c_int="threads",
    )


Addresses = ctypes.Array[ctypes.c_void_p]


def addresses(tensors: Sequence[Tensor]) -> Addresses:
    """Where tensors lie, for :meth:`NativeBatch.run`; they must outlive it."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


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


class NativeStack:
    """Layers that run one after the other, as the kernel reads them."""

    def __init__(self, layers: Sequence[LayerParts]) -> None:
        self.layers = tuple(layers)  # what the addresses point to
        self.words = (_Layer * len(layers))(*map(_words, layers))

    @classmethod
    def of(cls, layers: Sequence[LayerParts]) -> NativeStack | None:
        """The layers, or None where the kernels do not serve them."""
        return cls(layers) if layers and all(map(_served, layers)) else None


def _served(parts: LayerParts) -> bool:
    products = (parts.qkv, parts.out, parts.gate_up, parts.down)
    norms = (parts.norm_in, parts.norm_mlp, parts.norm_q, parts.norm_k)
    if any(product is None for product in products) or parts.head_dim % PANEL:
        return False
    assert parts.qkv is not None
    dtype = parts.qkv.dtype
    return all(norm is None or norm.dtype is dtype for norm in norms)


def _words(parts: LayerParts) -> _Layer:
    assert parts.qkv
    assert parts.out
    assert parts.gate_up
    assert parts.down
    address = lambda tensor: None if tensor is None else tensor.data_ptr()  # noqa: E731
    return _Layer(
        norm_in=address(parts.norm_in),
        qkv=parts.qkv.address,
        qkv_bias=address(parts.qkv_bias),
        norm_q=address(parts.norm_q),
        norm_k=address(parts.norm_k),
        out=parts.out.address,
        out_bias=address(parts.out_bias),
        norm_mlp=address(parts.norm_mlp),
        gate_up=parts.gate_up.address,
        gate_up_bias=address(parts.gate_up_bias),
        down=parts.down.address,
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


class NativeContext:
    """What turns features of committed positions into keys and values of all draft layers.

    Args:
        fc: packed projection of the features to [D].
        norm: [D], after it.
        kv: packed product of all layers, each its keys and then its values.
        norms_k: [P] of each layer's keys.
        kv_heads, eps: sizes; the norms' epsilon.
    """

    def __init__(
        self,
        fc: Packed,
        norm: Tensor,
        kv: Packed,
        norms_k: Sequence[Tensor],
        kv_heads: int,
        eps: float,
    ) -> None:
        norms = addresses(norms_k)
        self._held: Any = (fc, norm, kv, norms_k, norms)  # what the addresses point to
        self.words = _Context(
            fc.address,
            kv.address,
            norm.data_ptr(),
            ctypes.cast(norms, ctypes.c_void_p),
            fc.rows,
            len(norms_k),
            kv_heads,
            len(norms_k[0]),
            DTYPES[norm.dtype],
            eps,
        )


class NativeBatch:
    """The rows of one forward as the kernel reads them.

    Args:
        tables: cosines and sines [T, 1, P] (``targets.layers.rotary``).
        slots_T, positions_T: where each row belongs.
        seen: for each row the first position it sees, and the one after the last; not needed to
            :meth:`write`.
        cache_slots, max_len: of the cache.
    """

    def __init__(
        self,
        tables: tuple[Tensor, Tensor],
        slots_T: Tensor,
        positions_T: Tensor,
        seen: tuple[Tensor, Tensor] | None,
        cache_slots: int,
        max_len: int,
    ) -> None:
        held = [x.contiguous() for x in (*tables, slots_T, positions_T, *(seen or ()))]
        self._held = held  # what the addresses point to
        self._words = _Batch(
            *(x.data_ptr() for x in held),
            *([None] * (6 - len(held))),
            len(slots_T),
            cache_slots,
            max_len,
            torch.get_num_threads(),
        )

    def run(
        self,
        stack: NativeStack,
        x_TD: Tensor,
        keys: Addresses,
        values: Addresses,
        tap_ids: Sequence[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The last layer's output [T, D] and those of `tap_ids`; keys and values join the caches.

        Args:
            keys, values: addresses of each layer's cache (:func:`addresses`).
        """
        x_TD = x_TD.contiguous()
        count = len(stack.layers)
        last = count - 1
        outs = {i: torch.empty_like(x_TD) for i in {*tap_ids, last}}
        between = [torch.empty_like(x_TD) for _ in range(2)]
        places = [outs[i] if i in outs else between[i % 2] for i in range(count)]
        failed = kernels().layers(
            stack.words,
            count,
            ctypes.byref(self._words),
            x_TD.data_ptr(),
            keys,
            values,
            addresses(places),
        )
        assert not failed, "rows outside of the cache"
        return outs[last], {i: outs[i] for i in tap_ids}

    def write(
        self, context: NativeContext, features_TM: Tensor, keys: Addresses, values: Addresses
    ) -> None:
        """Keys and values of features into every layer's cache."""
        features_TM = features_TM.contiguous()
        failed = kernels().context(
            ctypes.byref(context.words),
            ctypes.byref(self._words),
            features_TM.data_ptr(),
            keys,
            values,
        )
        assert not failed, "rows outside of the cache"
