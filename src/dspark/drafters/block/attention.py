"""Attention of packed training blocks: many anchors of many sequences in one forward.

Block i of a sequence sees that sequence's context strictly before its anchor and its own K slots,
never another block (DSpark §3.3). On a CPU anchors are taken in groups, so that the masked part of
a score matrix stays small; on a GPU all at once, padded.

Suffixes: S sequences, A anchors, K block slots, T context rows, N block rows (A·K), H heads,
G query heads of a key-value head, P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.attention.grouped import grouped_attention
from dspark.attention.padding import Rectangle, joint_attention
from dspark.drafters.block.backbone import BlockAttention, Heads


def block_attention(
    context: list[Heads], lengths: list[int], anchors: list[Tensor], block_size: int
) -> BlockAttention:
    """Attention of packed blocks in the form that suits the device.

    Args:
        context: each layer's context keys and values, sequences end to end.
        lengths: context rows of each sequence.
        anchors: sorted anchor positions of each sequence, at least one.
        block_size: K.
    """
    on_gpu = context[0][0].device.type == "cuda"
    kind = PaddedBlockAttention if on_gpu else PackedBlockAttention
    return kind(context, lengths, anchors, block_size)


@dataclass(frozen=True, slots=True)
class _Group:
    """Neighbouring anchors of one sequence."""

    context: slice
    block: slice
    mask: Tensor


class PackedBlockAttention:
    """Calls as ``attend(layer, queries, keys, values)`` inside the backbone, by groups of anchors.

    Args:
        context, lengths, anchors, block_size: as in :func:`block_attention`.
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


class PaddedBlockAttention:
    """The same with all anchors of all sequences in a few calls."""

    def __init__(
        self, context: list[Heads], lengths: list[int], anchors: list[Tensor], block_size: int
    ) -> None:
        device, dtype = context[0][0].device, context[0][0].dtype
        self.rows = Rectangle([len(a) for a in anchors], device)
        self.block_size = block_size
        place = Rectangle(lengths, device)
        self.context = [
            (place.pad(keys).transpose(1, 2), place.pad(values).transpose(1, 2))
            for keys, values in context
        ]
        first_SA = self.rows.pad(torch.cat(anchors).to(device))
        seen_SAT = torch.arange(place.width, device=device) < first_SA[..., None]
        mask = torch.zeros(seen_SAT.shape, dtype=dtype, device=device)
        self.mask_SAT = mask.masked_fill_(~seen_SAT, float("-inf"))
        self._rows_mask: Tensor | None = None

    def _mask(self, groups: int) -> Tensor:
        """The mask for folded query rows [S, G·A·K, T], the same in every layer."""
        if self._rows_mask is None:
            self._rows_mask = self.mask_SAT.repeat_interleave(self.block_size, 1).repeat(
                1, groups, 1
            )
        return self._rows_mask

    def __call__(self, layer: int, q_NHP: Tensor, k_NHP: Tensor, v_NHP: Tensor) -> Tensor:
        """Mixed values [N, H · P]."""
        k_SHTP, v_SHTP = self.context[layer]
        heads, size = k_SHTP.shape[1], q_NHP.shape[-1]
        q_SHGAKP = self._blocks(q_NHP, heads)
        k_SHAKP, v_SHAKP = self._blocks(k_NHP, heads)[:, :, 0], self._blocks(v_NHP, heads)[:, :, 0]
        scale = size**-0.5
        own = torch.matmul(q_SHGAKP, k_SHAKP.transpose(-1, -2)[:, :, None]) * scale
        shape = own.shape  # S, H, G, A, K, K
        mixed, share = joint_attention(
            q_SHGAKP.flatten(2, 4), k_SHTP, v_SHTP, self._mask(shape[2]), own.flatten(2, 4), scale
        )
        mixed = mixed.view(q_SHGAKP.shape) + torch.matmul(share.view(shape), v_SHAKP[:, :, None])
        packed = self.rows.pack(mixed.permute(0, 3, 4, 1, 2, 5))
        return packed.reshape(len(q_NHP), -1)

    def _blocks(self, x_NHP: Tensor, kv_heads: int) -> Tensor:
        """[S, kv_heads, G, A, K, P]"""
        blocks = x_NHP.view(
            -1, self.block_size, kv_heads, x_NHP.shape[1] // kv_heads, x_NHP.shape[2]
        )
        return self.rows.pad(blocks).permute(0, 3, 4, 1, 2, 5)
