"""The matrix products of a forward with made-up weights, to time what a machine does with them.

Reading weights is what most of a step is (``evaluation.floor``), so these times tell kernel levels
and number types apart without a model being loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch

from dspark import native
from dspark.models.family import TargetSpec
from dspark.models.layers import PackedLinear

Shape = tuple[int, int]  # outputs, inputs


def layer_shapes(spec: TargetSpec) -> list[Shape]:
    """Products of one decoder layer: queries, keys and values; out; gate and up; down."""
    queries, pairs = spec.num_heads * spec.head_dim, 2 * spec.num_kv_heads * spec.head_dim
    inner, hidden = spec.intermediate_size, spec.hidden_size
    return [(queries + pairs, hidden), (hidden, queries), (2 * inner, hidden), (hidden, inner)]


def count_weights(shapes: Sequence[Shape]) -> int:
    """Weights of these products."""
    return sum(outputs * inputs for outputs, inputs in shapes)


def all_shapes(spec: TargetSpec) -> list[Shape]:
    """Products of a whole forward, the head's last."""
    return layer_shapes(spec) * spec.num_layers + [(spec.vocab_size, spec.hidden_size)]


class Products:
    """Products of these shapes, each with a weight of its own, laid out as a level wants it.

    Args:
        shapes: in the order they are run.
        dtype: of weights and inputs.
        level: that lays the weights out; any of ours serves all of ours.
        eight_bits: weights of eight bits.
    """

    def __init__(
        self, shapes: Sequence[Shape], dtype: torch.dtype, level: str, eight_bits: bool = False
    ) -> None:
        before = native.current()
        native.use(level)
        try:
            self.linears = [
                PackedLinear(torch.full(shape, 0.01, dtype=dtype), eight_bits=eight_bits)
                for shape in shapes
            ]
        finally:
            native.use(before)
        self.dtype, self.level = dtype, level
        self._inputs: dict[tuple[int, int], torch.Tensor] = {}

    @torch.inference_mode()
    def seconds(self, rows: int, level: str) -> float:
        """Time of all of them once with so many rows, on a level."""
        sizes = {linear.in_features for linear in self.linears}
        for size in sizes:
            if (rows, size) not in self._inputs:
                self._inputs[rows, size] = torch.full((rows, size), 0.01, dtype=self.dtype)
        inputs = {size: self._inputs[rows, size] for size in sizes}
        before = native.current()
        native.use(level)
        try:
            start = perf_counter()
            for linear in self.linears:
                linear(inputs[linear.in_features])
            return perf_counter() - start
        finally:
            native.use(before)
