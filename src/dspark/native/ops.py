"""The kernels on tensors: shapes and types checked, memory for results made.

Suffixes: T packed rows, H heads, P head_dim.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dspark.native.build import library

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
LANES = 16
# kernels.h, Kind; in the words of ``evaluation.floor``.
KINDS = ("matrix products", "attention", "norms", "choosing the token", "everything else")

_ADDRESS, _SIZE, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_SIGNATURES = {
    "dspark_pack": (None, [_INT, *[_ADDRESS] * 2, *[_SIZE] * 2]),
    "dspark_linear": (None, [_INT, *[_ADDRESS] * 5, *[_SIZE] * 3, _INT]),
    "dspark_attend": (
        _INT,
        [_INT, *[_ADDRESS, _SIZE] * 3, *[_ADDRESS] * 7, *[_SIZE] * 6, ctypes.c_float, _INT],
    ),
    "dspark_norm": (None, [_INT, *[_ADDRESS] * 3, *[_SIZE] * 2, ctypes.c_float, _INT]),
    "dspark_gate": (None, [_INT, *[_ADDRESS] * 2, *[_SIZE] * 2, _INT, _INT]),
    "dspark_rotate": (
        None,
        [_INT, _ADDRESS, _SIZE, *[_ADDRESS] * 3, *[_SIZE] * 3, _INT],
    ),
    "dspark_argmax": (None, [_INT, *[_ADDRESS, _SIZE] * 2, _ADDRESS, *[_SIZE] * 2, _INT]),
    "dspark_follow": (None, [_INT, *[_ADDRESS] * 4, *[_SIZE] * 3, _INT]),
    "dspark_layers": (_INT, [_ADDRESS, _SIZE, *[_ADDRESS] * 5]),
    "dspark_context": (_INT, [_ADDRESS] * 5),
    "dspark_spent": (None, [_ADDRESS]),
}


@cache
def kernels() -> Any:
    """The library with its signatures, or None."""
    found = library()
    if found is not None:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    return found


def serves(x: Tensor) -> bool:
    """Whether the kernels take this tensor: on a processor, of a known type, without gradients."""
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and not torch.is_grad_enabled()
        and kernels() is not None
    )


class Packed(NamedTuple):
    """A weight matrix [rows, columns] in the kernels' layout."""

    data: Tensor
    rows: int
    columns: int


def pack(weight_OI: Tensor) -> Packed | None:
    """A weight laid out for :func:`linear`, or None where the kernels do not serve it."""
    if weight_OI.device.type != "cpu" or weight_OI.dtype not in DTYPES or kernels() is None:
        return None
    rows, columns = weight_OI.shape
    if columns % 2 or not rows:
        return None
    weight_OI = weight_OI.contiguous()
    data = torch.empty(-(-rows // LANES) * LANES * columns, dtype=weight_OI.dtype)
    kernels().dspark_pack(
        DTYPES[weight_OI.dtype], weight_OI.data_ptr(), data.data_ptr(), rows, columns
    )
    return Packed(data, rows, columns)


def linear(
    x: Tensor, weight: Packed, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """``y = x Wᵀ (+ bias) (+ residual)``, x [..., columns] → [..., rows], summed in float32."""
    assert x.dtype is weight.data.dtype
    assert x.shape[-1] == weight.columns
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], weight.rows), dtype=x.dtype)
    if residual is not None:
        assert residual.shape == y.shape
        assert residual.dtype is x.dtype
        residual = residual.contiguous()
    kernels().dspark_linear(
        DTYPES[x.dtype],
        weight.data.data_ptr(),
        x.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if residual is None else residual.data_ptr(),
        y.data_ptr(),
        x.numel() // weight.columns,
        weight.rows,
        weight.columns,
        torch.get_num_threads(),
    )
    return y


def can_attend(like: Tensor, head_dim: int) -> bool:
    """Whether :func:`attend` serves a cache of this kind."""
    return head_dim % LANES == 0 and serves(like)


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
    failed = kernels().dspark_attend(
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
    kernels().dspark_norm(
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
    kernels().dspark_gate(
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
    """Rotary embedding of heads; the sine carries the sign (``models.layers.rotary``)."""
    assert x_THP.dtype is cos_T1P.dtype is sin_T1P.dtype
    x_THP = _heads_together(x_THP)
    cos_T1P, sin_T1P = cos_T1P.contiguous(), sin_T1P.contiguous()
    y = torch.empty(x_THP.shape, dtype=x_THP.dtype)
    kernels().dspark_rotate(
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
    kernels().dspark_argmax(
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
    """``kernels.h``, Biases."""

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
    kernels().dspark_follow(
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
        kernels().dspark_spent(seconds)
    return dict(zip(KINDS, seconds, strict=True))
