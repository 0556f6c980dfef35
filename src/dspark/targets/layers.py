"""Layer pieces shared by the lean target forward and the drafters.

Suffixes: T packed rows, H heads, D hidden, P head_dim.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dspark import native

# For every shape of a product oneDNN keeps the compiled kernel and PyTorch a description of it, a
# quarter of a MiB each, and by default 1,024 of either: 400 MiB more in an engine whose steps are
# of many sizes, filled over thousands of requests. A decoding user needs about 70 of them, and to
# make one anew takes 0.3 ms. Both read their limit when they first run.
for _limit in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_limit, "256")


def can_reorder(weight: Tensor) -> bool:
    """Whether oneDNN's pre-packed linear serves this weight.

    On a CPU, in float32, and in bfloat16 where the processor has instructions that oneDNN's needs.
    """
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32


# Rows that oneDNN's layout is chosen for: a draft to verify. 2 % faster than its layout for
# one row at 4 to 8 rows, and no slower at one.
PACK_ROWS = 8


class PackedLinear(nn.Module):
    """``y = x Wᵀ + b (+ residual)`` for inference, the weight laid out once for the machine.

    On a processor our own kernel does it, and reads the weight at nearly the speed of memory; where
    it cannot be compiled oneDNN does, with the weight reordered once instead of at every call;
    elsewhere this is ``F.linear``.

    Args:
        weight: [out, in], or already laid out for our kernels.
        bias: [out] or None.
        eight_bits: round the weight's rows to bytes, where the kernels serve it (``native.pack``).
    """

    def __init__(
        self,
        weight: Tensor | native.Packed,
        bias: Tensor | None = None,
        eight_bits: bool = False,
    ) -> None:
        super().__init__()
        self.bias = None if bias is None else bias.detach()
        self.packed: native.Packed | None
        self.reordered = False
        if isinstance(weight, native.Packed):
            self.out_features, self.in_features = weight.rows, weight.columns
            self.packed, self.weight = weight, weight.data
            return
        self.out_features, self.in_features = weight.shape
        laid = weight.detach()
        self.packed = native.pack(laid, eight_bits)
        self.reordered = self.packed is None and can_reorder(laid)
        if self.packed is not None:
            laid = self.packed.data
        elif self.reordered:
            laid = torch.ops.mkldnn._reorder_linear_weight(laid.contiguous(), PACK_ROWS)
        self.weight = laid

    @property
    def rows_OI(self) -> Tensor:
        """The weight [out, in] as it was given, where our kernels do not serve it."""
        return self.weight.to_dense() if self.reordered else self.weight

    @property
    def nbytes(self) -> int:
        """Memory that the weight takes as it is laid out."""
        return self.weight.nbytes if self.packed is None else self.packed.nbytes

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [..., in] → [..., out]; ``residual`` [..., out] is added in the same pass."""
        if self.packed is not None:
            return native.linear(x, self.packed, self.bias, residual)
        if not self.reordered:
            y = F.linear(x, self.weight, self.bias)
            return y if residual is None else y + residual
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self.weight, self.bias, "add"
            )
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """activation(gate) · up of both halves of the last dimension; ``silu``, else GELU's tanh."""
    if native.serves(gate_up):
        return native.gate(gate_up, silu=activation == "silu")
    gate, up = gate_up.chunk(2, -1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh") * up


def pack_linears(module: nn.Module) -> None:
    """Replace every ``nn.Linear`` below ``module`` by a packed one, in place (inference only).

    Modules that can join their weights (``fuse()``) do so first.
    """
    if callable(fuse := getattr(module, "fuse", None)):
        fuse()
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack_linears(child)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension with a learned scale."""

    def __init__(self, size: int, eps: float, weight: Tensor | None = None) -> None:
        super().__init__()
        self.size, self.eps = (size,), eps
        self.weight = nn.Parameter(torch.ones(size) if weight is None else weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype is x.dtype and native.serves(x):
            return native.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.size, self.weight.to(x.dtype), self.eps)
