"""Kernels of our own for decoding on a processor, one level for each kind of instructions.

A wheel carries them, or the user's machine compiles them at first use; the best level that runs is
used, or a measured one (``targets.choice``). Where there is none, or on another device, PyTorch's
operations do the same work slower. What the kernels add to speed is that a row's numbers never
depend on the rows beside it (``vectors.h``): a text is the same in any batch, in bfloat16 too.
"""

from dspark.native.layer import LayerParts, NativeBatch, NativeContext, NativeStack, addresses
from dspark.native.levels import TORCH, current, describe, forced, kernels, usable, use
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
    "TORCH",
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
    "current",
    "describe",
    "follow",
    "forced",
    "gate",
    "kernels",
    "linear",
    "pack",
    "rms_norm",
    "rotate",
    "serves",
    "spent",
    "usable",
    "use",
]
