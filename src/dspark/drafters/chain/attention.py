"""Attention of the training-time test: causal over the text, then each position's own chain.

The query of position i at step j sees the step-0 keys of positions up to i and, of steps 1 to j,
its own keys alone (Eagle3, arXiv 2503.01840). On a CPU queries go in blocks that skip what none of
theirs sees; on a GPU all at once, padded.

Suffixes: S sequences, T rows of the context, Q rows that learn, W most of them in a sequence,
J steps so far, H heads, P head_dim, G query heads a key-value head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.attention.padding import Rectangle, joint_attention
from dspark.drafters.chain.batch import PositionBatch


def chain_attention(
    batch: PositionBatch, k_THP: Tensor, v_THP: Tensor
) -> ChainAttention | PaddedChainAttention:
    """Attention of the training-time test in the form that suits the device.

    Args:
        batch: where sequences and learning rows lie.
        k_THP, v_THP: step-0 keys and values of all rows.
    """
    kind = PaddedChainAttention if k_THP.device.type == "cuda" else ChainAttention
    return kind(batch, k_THP, v_THP)


class ChainAttention:
    """Calls as ``attend(queries)``; ``add_step`` brings the keys of the next step first.

    Args:
        batch, k_THP, v_THP: as in :func:`chain_attention`.
        block: queries handled together; bounds the score matrix.
    """

    def __init__(
        self, batch: PositionBatch, k_THP: Tensor, v_THP: Tensor, block: int = 256
    ) -> None:
        self.keys, self.values = k_THP, v_THP
        self.own_keys: list[Tensor] = []
        self.own_values: list[Tensor] = []
        self.parts: list[tuple[slice, slice, Tensor]] = []  # queries, context, mask
        start = row = 0
        for length, (first, count) in zip(batch.lengths, batch.learners, strict=True):
            for low in range(first, first + count, block):
                high = min(low + block, first + count)
                place = torch.arange(high, device=k_THP.device)
                hidden = place > torch.arange(low, high, device=k_THP.device)[:, None]
                mask = torch.zeros(hidden.shape, dtype=k_THP.dtype, device=k_THP.device)
                mask.masked_fill_(hidden, float("-inf"))
                queries = slice(row, row + high - low)
                self.parts.append((queries, slice(start, start + high), mask))
                row += high - low
            start += length

    def add_step(self, k_QHP: Tensor, v_QHP: Tensor) -> None:
        """Keys and values of one more step, one row for each learning position."""
        self.own_keys.append(k_QHP)
        self.own_values.append(v_QHP)

    def __call__(self, q_QHP: Tensor) -> Tensor:
        """Mixed values [Q, H · P] of the present step."""
        return torch.cat([self._part(q_QHP, *part) for part in self.parts])

    def _part(self, q_QHP: Tensor, queries: slice, context: slice, mask: Tensor) -> Tensor:
        q = q_QHP[queries]
        n, heads, size = q.shape
        kv_heads = self.keys.shape[1]
        groups = heads // kv_heads
        q_HGNP = q.view(n, kv_heads, groups, size).permute(1, 2, 0, 3)
        folded = q_HGNP.reshape(kv_heads, groups * n, size)
        keys, values = self.keys[context], self.values[context]
        scale = size**-0.5
        masks = mask.expand(kv_heads, groups, *mask.shape).reshape(kv_heads, groups * n, -1)
        scores = torch.baddbmm(masks, folded, keys.permute(1, 2, 0), alpha=scale)
        if not self.own_keys:
            out = torch.bmm(torch.softmax(scores, -1), values.transpose(0, 1))
            return _unfold(out.view(kv_heads, groups, n, size))
        own_k = torch.stack([k[queries] for k in self.own_keys]).permute(2, 1, 0, 3)  # [H, N, J, P]
        own_v = torch.stack([v[queries] for v in self.own_values]).permute(2, 1, 0, 3)
        own = torch.einsum("hgnp,hnjp->hgnj", q_HGNP, own_k) * scale
        steps = own.shape[-1]
        joint = torch.cat([scores, own.reshape(kv_heads, groups * n, steps)], -1).softmax(-1)
        out = torch.bmm(joint[..., :-steps], values.transpose(0, 1))
        share = joint[..., -steps:].view(kv_heads, groups, n, steps)
        mixed = torch.einsum("hgnj,hnjp->hgnp", share, own_v)
        return _unfold(out.view(kv_heads, groups, n, size) + mixed)


def _unfold(x_HGNP: Tensor) -> Tensor:
    """[kv_heads, groups, N, P] to [N, heads · P]."""
    n = x_HGNP.shape[2]
    return x_HGNP.permute(2, 0, 1, 3).reshape(n, -1)


class PaddedChainAttention:
    """The same for all sequences in a few calls; as `chain_attention` says."""

    def __init__(self, batch: PositionBatch, k_THP: Tensor, v_THP: Tensor) -> None:
        device, dtype = k_THP.device, k_THP.dtype
        context = Rectangle(batch.lengths, device)
        self.rows = Rectangle([count for _, count in batch.learners], device)
        self.keys = context.pad(k_THP).transpose(1, 2)
        self.values = context.pad(v_THP).transpose(1, 2)
        self.own: list[tuple[Tensor, Tensor]] = []
        at_SW = self.rows.pad(batch.positions_T[batch.rows_Q])
        hidden = torch.arange(context.width, device=device) > at_SW[..., None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        self.mask_SWT = mask.masked_fill_(hidden, float("-inf"))
        self._rows_mask: Tensor | None = None

    def _mask(self, groups: int) -> Tensor:
        """The mask for folded query rows [S, G·W, T], the same at every step."""
        if self._rows_mask is None:
            self._rows_mask = self.mask_SWT.repeat(1, groups, 1)
        return self._rows_mask

    def add_step(self, k_QHP: Tensor, v_QHP: Tensor) -> None:
        """Keys and values of one more step, one row for each learning position."""
        pads = [self.rows.pad(x).permute(0, 2, 1, 3) for x in (k_QHP, v_QHP)]
        self.own.append((pads[0], pads[1]))  # [S, H, W, P] each

    def __call__(self, q_QHP: Tensor) -> Tensor:
        """Mixed values [Q, H · P] of the present step."""
        kv_heads, size = self.keys.shape[1], q_QHP.shape[-1]
        q = self.rows.pad(q_QHP.view(len(q_QHP), kv_heads, -1, size))
        q_SHGWP = q.permute(0, 2, 3, 1, 4)
        scale = size**-0.5
        scores = [(q_SHGWP * keys[:, :, None]).sum(-1) for keys, _ in self.own]
        own = q_SHGWP.new_empty(*q_SHGWP.shape[:-1], 0)
        if scores:
            own = torch.stack(scores, -1) * scale
        mask = self._mask(q_SHGWP.shape[2])
        mixed, share = joint_attention(
            q_SHGWP.flatten(2, 3), self.keys, self.values, mask, own.flatten(2, 3), scale
        )
        mixed, share = mixed.view(q_SHGWP.shape), share.view(own.shape)
        for step, (_, values) in enumerate(self.own):
            mixed = mixed + share[..., step, None] * values[:, :, None]
        return self.rows.pack(mixed.permute(0, 3, 1, 2, 4)).reshape(len(q_QHP), -1)
