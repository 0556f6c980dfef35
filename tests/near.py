"""Number types of the kernels, and how far their results may be from exact ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
TYPES = pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])


def near(result: Tensor, exact: Tensor, scale: float = 1.0) -> None:
    """Within rounding: float32 sums of some hundred terms, or half a step of bfloat16 more."""
    assert torch.isfinite(result).all()
    step = 2**-8 if result.dtype is BFLOAT16 else 1e-6
    error = (result.double() - exact).abs()
    assert bool((error <= step * exact.abs() + 4e-6 * scale).all()), float(error.max())
