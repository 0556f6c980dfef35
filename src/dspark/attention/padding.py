"""Packed sequences as one padded batch: the shape of attention on a GPU, where a call costs more
than the padding it avoids.

Suffixes: S sequences, W widest of them, X query rows, T context rows, J own keys of a query, H
key-value heads, P head_dim, N packed rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Rectangle:
    """Rows of several sequences laid end to end, and the same rows as [S, W, ...].

    Args:
        counts: rows of each sequence, in packed order.
        device: where the rows are.
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self.sequences, self.width = len(counts), max(counts)
        filled_SW = torch.arange(self.width) < torch.tensor(counts)[:, None]
        self.place_N = filled_SW.flatten().nonzero()[:, 0].to(device)

    def pad(self, x_N: Tensor) -> Tensor:
        """[N, ...] as [S, W, ...], zeros where a sequence has ended."""
        full = x_N.new_zeros(self.sequences * self.width, *x_N.shape[1:])
        return full.index_copy(0, self.place_N, x_N).unflatten(0, (self.sequences, self.width))

    def pack(self, x_SW: Tensor) -> Tensor:
        """[S, W, ...] as [N, ...]."""
        return x_SW.flatten(0, 1).index_select(0, self.place_N)


def joint_attention(
    q_SHXP: Tensor,
    k_SHTP: Tensor,
    v_SHTP: Tensor,
    mask_SXT: Tensor,
    own_SHXJ: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention over a shared context and some keys of each query's own, in one softmax.

    Args:
        mask_SXT: additive, over the context.
        own_SHXJ: finished scores of the own keys.
        scale: factor on the context's scores.

    Returns:
        What the context adds to the mix [S, H, X, P], and the own keys' shares [S, H, X, J].
    """
    scores = torch.matmul(q_SHXP * scale, k_SHTP.transpose(-1, -2)) + mask_SXT[:, None]
    # Autocast would make float32 copies around a soft-max that computes in float32 anyway.
    with torch.autocast(scores.device.type, enabled=False):
        joint = torch.cat([scores, own_SHXJ.to(scores.dtype)], -1).softmax(-1).to(v_SHTP.dtype)
    context = k_SHTP.shape[2]
    return torch.matmul(joint[..., :context], v_SHTP), joint[..., context:]
