"""The matrix products of a forward with made-up weights, to time what a machine does with them.

Reading weights is what most of a step is (``evaluation.floor``), so these times tell kernel levels
and number types apart without a model being loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import torch

from dspark import native
from dspark.targets.family import TargetSpec
from dspark.targets.layers import PackedLinear

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


def sample(spec: TargetSpec, most: int) -> tuple[list[Shape], float]:
    """Products to time in place of all of a forward's, and how many times their weights all are.

    Args:
        most: weights to time. Where all are more, some layers stand for the rest and for the head,
            and of layers larger than that some outputs for the others.
    """
    whole, layer = all_shapes(spec), layer_shapes(spec)
    if count_weights(whole) <= most:
        return whole, 1.0
    parts = -(-count_weights(layer) // most)
    layer = [(max(outputs // parts, 1), inputs) for outputs, inputs in layer]
    shapes = layer * max(1, min(spec.num_layers, most // count_weights(layer)))
    return shapes, count_weights(whole) / count_weights(shapes)


@contextmanager
def on_level(level: str) -> Iterator[None]:
    """Lets a kernel level serve inside the block, and the one of before afterwards.

    Raises:
        ConfigError: it does not run here.
    """
    before = native.current()
    native.use(level)
    try:
        yield
    finally:
        native.use(before)


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
        with on_level(level):
            self.linears = [
                PackedLinear(torch.full(shape, 0.01, dtype=dtype), eight_bits=eight_bits)
                for shape in shapes
            ]
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
        with on_level(level):
            start = perf_counter()
            for linear in self.linears:
                linear(inputs[linear.in_features])
            return perf_counter() - start


def by_level(
    shapes: Sequence[Shape], dtype: torch.dtype, levels: Sequence[str], eight_bits: bool = False
) -> dict[str, Products]:
    """Products of each of these levels; ours share one layout of the weights.

    Args:
        eight_bits: of weights; only our levels have products of them.
    """
    ours = [level for level in levels if level != native.TORCH]
    shared = Products(shapes, dtype, ours[-1], eight_bits) if ours else None
    return {
        level: shared
        if shared is not None and level != native.TORCH
        else Products(shapes, dtype, native.TORCH)
        for level in levels
    }
