"""Rotary position embedding.

Suffixes: T packed rows, H heads, P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dspark import native


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Rotary frequencies of one kind of layer: ``inv_freq`` [head_dim / 2] and a magnitude.

    ``kept`` holds the cosines and sines of all positions so far, by type, on a processor.
    """

    inv_freq: torch.Tensor
    scale: float = 1.0
    kept: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, compare=False, repr=False
    )


def rotary(positions_T: Tensor, table: RopeTable, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [T, 1, P] for :func:`rotate`, at absolute positions [T]."""
    if positions_T.device.type != "cpu" or not len(positions_T):
        return _rotary(positions_T, table, dtype)
    last = int(positions_T.max())
    kept = table.kept.get(dtype)
    if kept is None or len(kept[0]) <= last:  # twice as far as needed, so seldom
        kept = table.kept[dtype] = _rotary(torch.arange(2 * last + 64), table, dtype)
    return kept[0].index_select(0, positions_T), kept[1].index_select(0, positions_T)


def _rotary(positions_T: Tensor, table: RopeTable, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = positions_T.float()[:, None] * table.inv_freq.to(positions_T.device)
    cos, sin = angles.cos() * table.scale, angles.sin() * table.scale
    return (
        torch.cat([cos, cos], -1).to(dtype)[:, None],
        torch.cat([-sin, sin], -1).to(dtype)[:, None],
    )


def rotate(x_THP: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding; ``sin`` carries the sign, so rotating the halves is a roll."""
    if native.serves(x_THP):
        return native.rotate(x_THP, cos, sin)
    return torch.addcmul(x_THP * cos, x_THP.roll(x_THP.shape[-1] // 2, -1), sin)
