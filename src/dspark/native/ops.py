"""The kernels on tensors: shapes and types checked, memory for results made.

Suffixes: T packed rows, H heads, P head_dim.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import torch
from torch import Tensor

from dspark.native.levels import best, kernels

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
INT8 = 2  # of a weight, beside these
PANEL = 16  # outputs that lie together in a packed weight; heads are multiples of it
# table.h, Kind; in the words of ``evaluation.floor``.
KINDS = ("matrix products", "attention", "norms", "choosing the token", "everything else")


def serves(x: Tensor) -> bool:
    """Whether the kernels take this tensor: on a processor, of a known type, without gradients."""
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and not torch.is_grad_enabled()
        and kernels() is not None
    )


class _Weight(ctypes.Structure):
    """``table.h``, Weight."""

    _fields_: ClassVar[list[tuple[str, type[Any]]]] = [
        *((name, ctypes.c_void_p) for name in ("data", "scales", "sums")),
        ("out", ctypes.c_long),
        ("in", ctypes.c_long),
        ("type", ctypes.c_int),
    ]


class Packed:
    """A weight matrix [rows, columns] in the kernels' layout, for every level.

    Attributes:
        dtype: of the inputs it is multiplied with.
        parts: numbers, and of eight bits the rows' scales and sums; empty otherwise.
        address: of what the kernels read.
        nbytes: memory it takes.
    """

    def __init__(self, weight_OI: Tensor, eight_bits: bool = False) -> None:
        rows, columns = weight_OI.shape
        whole = -(-rows // PANEL) * PANEL
        kept = torch.int8 if eight_bits else weight_OI.dtype
        scales = torch.empty(whole if eight_bits else 0)
        sums = torch.empty(whole if eight_bits else 0, dtype=torch.int32)
        data = torch.empty(whole * columns, dtype=kept)
        self._lay(rows, columns, weight_OI.dtype, (data, scales, sums))
        weight_OI = weight_OI.contiguous()
        kernels().pack(
            DTYPES[self.dtype], weight_OI.data_ptr(), self.address, torch.get_num_threads()
        )

    @classmethod
    def of(
        cls, rows: int, columns: int, dtype: torch.dtype, parts: tuple[Tensor, Tensor, Tensor]
    ) -> Packed:
        """A weight that was packed before, from its `parts`."""
        packed = cls.__new__(cls)
        packed._lay(rows, columns, dtype, parts)
        return packed

    def _lay(
        self, rows: int, columns: int, dtype: torch.dtype, parts: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        self.rows, self.columns, self.dtype, self.parts = rows, columns, dtype, parts
        self.data, scales, sums = parts
        eight_bits = self.data.dtype is torch.int8
        self._words = _Weight(
            self.data.data_ptr(),
            scales.data_ptr() if eight_bits else None,
            sums.data_ptr() if eight_bits else None,
            rows,
            columns,
            INT8 if eight_bits else DTYPES[dtype],
        )
        self.address = ctypes.addressof(self._words)
        self.nbytes = sum(x.nbytes for x in parts)


def pack(weight_OI: Tensor, eight_bits: bool = False) -> Packed | None:
    """A weight laid out for :func:`linear`, or None where the kernels do not serve it.

    Args:
        eight_bits: round each row to bytes with a scale of its own (symmetric); inputs are then
            rounded the same way, and sums are exact.
    """
    if weight_OI.device.type != "cpu" or weight_OI.dtype not in DTYPES or kernels() is None:
        return None
    rows, columns = weight_OI.shape
    if columns % (4 if eight_bits else 2) or not rows:
        return None
    return Packed(weight_OI, eight_bits)


def linear(
    x: Tensor, weight: Packed, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """``y = x Wᵀ (+ bias) (+ residual)``, x [..., columns] → [..., rows], summed in float32."""
    assert x.dtype is weight.dtype
    assert x.shape[-1] == weight.columns
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], weight.rows), dtype=x.dtype)
    if residual is not None:
        assert residual.shape == y.shape
        assert residual.dtype is x.dtype
        residual = residual.contiguous()
    (kernels() or best()).linear(
        DTYPES[x.dtype],
        weight.address,
        x.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if residual is None else residual.data_ptr(),
        y.data_ptr(),
        x.numel() // weight.columns,
        torch.get_num_threads(),
    )
    return y


def can_attend(like: Tensor, head_dim: int) -> bool:
    """Whether :func:`attend` serves a cache of this kind."""
    return head_dim % PANEL == 0 and serves(like)


def attend(
    q_THP: Tensor,
    k_THP: Tensor,
    v_THP: Tensor,
    keys: Tensor,
    values: Tensor,
    slots_T: Tensor,
    positions_T: Tensor,
    seen: tuple[Tensor, Tensor],
    max_len: int,
    scale: float,
) -> Tensor:
    """Write new keys and values into a layer's cache and attend to it; [T, heads · P].

    Args:
        q_THP, k_THP, v_THP: heads of the new rows; k and v may have fewer.
        keys, values: the layer's cache [slots · kv_heads · max_len, P], written in place.
        slots_T, positions_T: where each row belongs.
        seen: for each row the first position it sees, and the one after the last.
        max_len, scale: of the cache, on the scores.
    """
    rows, heads, size = q_THP.shape
    kv_heads = k_THP.shape[1]
    assert k_THP.dtype is v_THP.dtype is keys.dtype is q_THP.dtype
    places = [x.contiguous() for x in (slots_T, positions_T, *seen)]
    q_THP, k_THP, v_THP = (_heads_together(x) for x in (q_THP, k_THP, v_THP))
    out = torch.empty(rows, heads * size, dtype=q_THP.dtype)
    failed = kernels().attend(
        DTYPES[q_THP.dtype],
        *(word for x in (q_THP, k_THP, v_THP) for word in (x.data_ptr(), x.stride(0))),
        keys.data_ptr(),
        values.data_ptr(),
        *(x.data_ptr() for x in places),
        out.data_ptr(),
        rows,
        heads,
        kv_heads,
        size,
        len(keys) // (kv_heads * max_len),
        max_len,
        scale,
        torch.get_num_threads(),
    )
    assert not failed, "rows outside of the cache"
    return out


def _heads_together(x_THP: Tensor) -> Tensor:
    """The same heads with only rows apart from each other in memory."""
    whole = x_THP.stride(2) == 1 and x_THP.stride(1) == x_THP.shape[2]
    return x_THP if whole else x_THP.contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, scaled; worked out in float32."""
    size = x.shape[-1]
    assert weight.dtype is x.dtype
    assert weight.shape == (size,)
    x = x.contiguous()
    y = torch.empty_like(x)
    kernels().norm(
        DTYPES[x.dtype],
        x.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        x.numel() // size,
        size,
        eps,
        torch.get_num_threads(),
    )
    return y


def gate(gate_up: Tensor, silu: bool) -> Tensor:
    """``activation(gate) · up`` of [..., 2 · I] → [..., I]: SiLU, or GELU by its tanh form."""
    gate_up = gate_up.contiguous()
    size = gate_up.shape[-1] // 2
    y = torch.empty((*gate_up.shape[:-1], size), dtype=gate_up.dtype)
    kernels().gate(
        DTYPES[gate_up.dtype],
        gate_up.data_ptr(),
        y.data_ptr(),
        gate_up.numel() // (2 * size),
        size,
        int(silu),
        torch.get_num_threads(),
    )
    return y


def rotate(x_THP: Tensor, cos_T1P: Tensor, sin_T1P: Tensor) -> Tensor:
    """Rotary embedding of heads; the sine carries the sign (``targets.layers.rotary``)."""
    assert x_THP.dtype is cos_T1P.dtype is sin_T1P.dtype
    x_THP = _heads_together(x_THP)
    cos_T1P, sin_T1P = cos_T1P.contiguous(), sin_T1P.contiguous()
    y = torch.empty(x_THP.shape, dtype=x_THP.dtype)
    kernels().rotate(
        DTYPES[x_THP.dtype],
        x_THP.data_ptr(),
        x_THP.stride(0),
        cos_T1P.data_ptr(),
        sin_T1P.data_ptr(),
        y.data_ptr(),
        *x_THP.shape,
        torch.get_num_threads(),
    )
    return y


def argmax(x_NV: Tensor, bias_NV: Tensor | None = None) -> Tensor:
    """Place [N] of each row's first largest number; -1 where one is NaN or none is finite.

    Args:
        bias_NV: of the same type, added first, in float32.
    """
    x_NV = x_NV if x_NV.stride(1) == 1 else x_NV.contiguous()
    bias, stride = None, 0
    if bias_NV is not None:
        assert bias_NV.shape == x_NV.shape
        assert bias_NV.dtype is x_NV.dtype
        bias_NV = bias_NV if bias_NV.stride(1) == 1 else bias_NV.contiguous()
        bias, stride = bias_NV.data_ptr(), bias_NV.stride(0)
    places_N = torch.empty(len(x_NV), dtype=torch.int64)
    kernels().argmax(
        DTYPES[x_NV.dtype],
        x_NV.data_ptr(),
        x_NV.stride(0),
        bias,
        stride,
        places_N.data_ptr(),
        *x_NV.shape,
        torch.get_num_threads(),
    )
    return places_N


class Biases(ctypes.Structure):
    """``table.h``, Biases."""

    _fields_: ClassVar[list[tuple[str, type[Any]]]] = [
        *((name, ctypes.c_void_p) for name in ("rows", "place_of", "target_ids", "used")),
        ("turn", ctypes.c_int64),
    ]


def follow(base_RKV: Tensor, biases: Biases, ids_RK: Tensor, done_R: Tensor) -> None:
    """Go on with greedy blocks, each token's logits with the bias of the one before it.

    A block stops at a token whose bias is not kept: `done_R` tells how far each has come.

    Args:
        base_RKV: logits without any bias.
        biases: kept ones, of the same type.
        ids_RK: [R, K + 1] target ids, the anchors first; filled in place.
        done_R: slots that have a token; raised in place.
    """
    requests, slots, size = base_RKV.shape
    assert base_RKV.is_contiguous()
    assert ids_RK.shape == (requests, slots + 1)
    assert ids_RK.is_contiguous()
    kernels().follow(
        DTYPES[base_RKV.dtype],
        base_RKV.data_ptr(),
        ctypes.byref(biases),
        ids_RK.data_ptr(),
        done_R.data_ptr(),
        requests,
        slots,
        size,
        torch.get_num_threads(),
    )


def spent() -> dict[str, float]:
    """Seconds this thread has waited for kernels since the last call, by kind of work."""
    seconds = (ctypes.c_double * len(KINDS))()
    if kernels() is not None:
        kernels().spent(seconds)
    return dict(zip(KINDS, seconds, strict=True))
