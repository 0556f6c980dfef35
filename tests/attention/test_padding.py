"""What runs padded on a GPU says the same as what runs in groups on a CPU, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dspark.attention.padding import Rectangle
from dspark.attention.ragged import PackedAttention
from dspark.drafters.block.attention import PackedBlockAttention, PaddedBlockAttention
from dspark.drafters.chain.attention import ChainAttention, PaddedChainAttention
from dspark.drafters.chain.batch import PositionBatch

HEADS, KV, SIZE = 6, 2, 8


def _heads(rows: int, heads: int, draw: torch.Generator) -> Tensor:
    return torch.randn(rows, heads, SIZE, generator=draw, dtype=torch.float64).requires_grad_()


def _same(one: Tensor, other: Tensor, leaves: list[Tensor]) -> None:
    """Equal values, and equal gradients of the same weighted sum."""
    torch.testing.assert_close(one, other)
    weight = torch.randn(one.shape, generator=torch.Generator().manual_seed(1), dtype=one.dtype)
    grads = [
        torch.autograd.grad((x * weight).sum(), leaves, retain_graph=True) for x in (one, other)
    ]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_rectangle() -> None:
    counts = [3, 1, 4]
    rectangle = Rectangle(counts, torch.device("cpu"))
    rows = torch.arange(1.0, 17.0).view(8, 2)
    padded = rectangle.pad(rows)
    assert padded.shape == (3, 4, 2)
    assert padded[1, 1:].eq(0).all()
    assert padded[2].equal(rows[4:])
    assert rectangle.pack(padded).equal(rows)


@pytest.mark.parametrize("anchors", [[[0, 3, 4], [2], [1, 5]], [[4], [0], [6]]])
def test_blocks(anchors: list[list[int]]) -> None:
    draw, lengths, size = torch.Generator().manual_seed(0), [5, 3, 7], 3
    rows = size * sum(map(len, anchors))
    context = [(_heads(15, KV, draw), _heads(15, KV, draw)) for _ in range(2)]
    q, k, v = _heads(rows, HEADS, draw), _heads(rows, KV, draw), _heads(rows, KV, draw)
    places = [torch.tensor(a) for a in anchors]
    packed = PackedBlockAttention(context, lengths, places, size, group=2)
    padded = PaddedBlockAttention(context, lengths, places, size)
    for layer, leaves in enumerate(context):
        _same(packed(layer, q, k, v), padded(layer, q, k, v), [q, k, v, *leaves])


def test_chains() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths, learners = [6, 4], [(2, 3), (0, 4)]
    rows_Q = torch.tensor([2, 3, 4, 6, 7, 8, 9])
    none = torch.zeros(0)
    batch = PositionBatch(
        lengths,
        learners,
        none,
        none,
        torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3]),
        rows_Q,
        *[none] * 5,
    )
    keys, values = _heads(10, KV, draw), _heads(10, KV, draw)
    blocks = ChainAttention(batch, keys, values, block=2)
    padded = PaddedChainAttention(batch, keys, values)
    leaves = [keys, values]
    for step in range(3):
        if step:
            own = _heads(7, KV, draw), _heads(7, KV, draw)
            blocks.add_step(*own)
            padded.add_step(*own)
            leaves += own
        q = _heads(7, HEADS, draw)
        _same(blocks(q), padded(q), [*leaves, q])


def test_whole_sequences() -> None:
    draw, lengths = torch.Generator().manual_seed(0), [5, 1, 3]
    q, k, v = _heads(9, HEADS, draw), _heads(9, KV, draw), _heads(9, KV, draw)
    attend = PackedAttention(lengths, (None,), SIZE**-0.5, block=2)
    _same(attend(0, q, k, v), attend._padded(q, k, v), [q, k, v])
    again = F.scaled_dot_product_attention(
        *(x[6:].transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(attend(0, q, k, v)[6:], again[0].transpose(0, 1).flatten(1))
