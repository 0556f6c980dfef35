"""Layer pieces shared by the lean target forward and the drafters.

Suffixes: T packed rows, H heads, D hidden, P head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dspark.models.family import RopeTable


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's pre-packed linear serves this weight (CPU, float32 or bfloat16)."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
    )


class PackedLinear(nn.Module):
    """``y = x Wᵀ + b (+ residual)`` for inference, the weight laid out once for the machine.

    On CPU the weight is reordered into oneDNN's blocked layout, which saves the reordering that
    every plain ``F.linear`` call pays; elsewhere this is ``F.linear``.

    Args:
        weight: [out, in].
        bias: [out] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.packed = can_pack(weight)
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.weight = weight

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [..., in] → [..., out]; ``residual`` [..., out] is added in the same pass."""
        if not self.packed:
            y = F.linear(x, self.weight, self.bias)
            return y if residual is None else y + residual
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self.weight, self.bias, "add"
            )
        return torch.ops.mkldnn._linear_pointwise.default(
            x, self.weight, self.bias, "none", [], ""
        )


def pack_linears(module: nn.Module) -> None:
    """Replace every ``nn.Linear`` below ``module`` by a packed one, in place (inference only)."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack_linears(child)


def rotary(positions_T: Tensor, table: RopeTable, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [T, 1, P] for :func:`rotate`, at absolute positions [T]."""
    angles = positions_T.float()[:, None] * table.inv_freq.to(positions_T.device)
    cos, sin = angles.cos() * table.scale, angles.sin() * table.scale
    return (
        torch.cat([cos, cos], -1).to(dtype)[:, None],
        torch.cat([-sin, sin], -1).to(dtype)[:, None],
    )


def rotate(x_THP: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding; ``sin`` carries the sign, so rotating the halves is a roll."""
    return torch.addcmul(x_THP * cos, x_THP.roll(x_THP.shape[-1] // 2, -1), sin)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension with a learned scale."""

    def __init__(self, size: int, eps: float, weight: Tensor | None = None) -> None:
        super().__init__()
        self.size, self.eps = (size,), eps
        self.weight = nn.Parameter(torch.ones(size) if weight is None else weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.size, self.weight.to(x.dtype), self.eps)
