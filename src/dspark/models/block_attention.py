"""Attention of packed training blocks: many anchors of many sequences in one forward.

Block i of a sequence sees that sequence's context strictly before its anchor and its own K slots,
never another block (algorithms: training). Anchors are taken in groups so that the masked part of
a score matrix stays small.

Suffixes: T context rows, N block rows (anchors x K), H heads, P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.models.backbone import Heads
from dspark.models.layers import grouped_attention


@dataclass(frozen=True, slots=True)
class _Group:
    """Neighbouring anchors of one sequence."""

    context: slice
    block: slice
    mask: Tensor


class PackedBlockAttention:
    """Calls as ``attend(layer, queries, keys, values)`` inside the backbone.

    Args:
        context: each layer's context keys and values, sequences end to end.
        lengths: context rows of each sequence.
        anchors: sorted anchor positions of each sequence.
        block_size: K.
        group: anchors handled together.
    """

    def __init__(
        self,
        context: list[Heads],
        lengths: list[int],
        anchors: list[Tensor],
        block_size: int,
        group: int = 16,
    ) -> None:
        self.context = context
        dtype, device = context[0][0].dtype, context[0][0].device
        self.groups: list[_Group] = []
        row, start = 0, 0
        for length, positions in zip(lengths, anchors, strict=True):
            for part in positions.split(group) if len(positions) else ():
                end, slots = int(part[-1]), len(part) * block_size
                mask = _group_mask(part.to(device), end, block_size, dtype)
                self.groups.append(_Group(slice(start, start + end), slice(row, row + slots), mask))
                row += slots
            start += length

    def __call__(self, layer: int, q_NHP: Tensor, k_NHP: Tensor, v_NHP: Tensor) -> Tensor:
        """Mixed values [N, H · P]."""
        context_k, context_v = self.context[layer]
        outs = []
        for group in self.groups:
            q, k, v = q_NHP[group.block], k_NHP[group.block], v_NHP[group.block]
            k = torch.cat([context_k[group.context], k])
            v = torch.cat([context_v[group.context], v])
            outs.append(grouped_attention(q, k, v, group.mask, q.shape[-1] ** -0.5))
        return torch.cat(outs)


def _group_mask(anchors: Tensor, context: int, block_size: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [slots, context + slots]: own context, then own block."""
    place = torch.arange(context, device=anchors.device)
    sees_context = (place < anchors[:, None]).repeat_interleave(block_size, 0)
    owner = torch.arange(len(anchors), device=anchors.device).repeat_interleave(block_size)
    seen = torch.cat([sees_context, owner[:, None] == owner[None]], 1)
    mask = torch.zeros(seen.shape, dtype=dtype, device=anchors.device)
    return mask.masked_fill_(~seen, float("-inf"))
