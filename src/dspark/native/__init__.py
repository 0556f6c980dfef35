"""Kernels of our own for decoding on a processor, compiled on the user's machine at first use.

Where there is no compiler, or another device, PyTorch's operations do the same work slower. What
the kernels add to speed is that a row's numbers never depend on the rows beside it
(``vectors.h``), so that a text is the same in any batch, in bfloat16 too.
"""

from dspark.native.build import describe
from dspark.native.layer import LayerParts, NativeBatch, NativeContext, NativeStack, addresses
from dspark.native.ops import (
    Biases,
    Packed,
    argmax,
    attend,
    can_attend,
    follow,
    gate,
    linear,
    pack,
    rms_norm,
    rotate,
    serves,
    spent,
)

__all__ = [
    "Biases",
    "LayerParts",
    "NativeBatch",
    "NativeContext",
    "NativeStack",
    "Packed",
    "addresses",
    "argmax",
    "attend",
    "can_attend",
    "describe",
    "follow",
    "gate",
    "linear",
    "pack",
    "rms_norm",
    "rotate",
    "serves",
    "spent",
]
