"""Percentile bootstrap over prompts: how sure a figure is.

Resamples are kept as counts, how often each prompt was drawn, so that a sum over a resample is one
matrix product. The counts follow from the number of prompts and a key alone: two drafters measured
on the same prompts meet the same resamples, and their ratio is a paired comparison.

Suffixes: B resamples, P prompts, K slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
LEVEL = 0.95

Floats = NDArray[np.float64]


def resample_counts(size: int, key: int = 0, resamples: int = RESAMPLES) -> Floats:
    """How often each of `size` items is drawn in each resample, with replacement.

    Args:
        size: items P, 1 or more.
        key: 0 or more; another key gives independent resamples, the same key the same ones.

    Returns:
        [B, P], rows adding up to P.
    """
    drawn_BP = np.random.default_rng(key).integers(size, size=(resamples, size))
    cells_BP = drawn_BP + size * np.arange(resamples)[:, None]
    counts = np.bincount(cells_BP.ravel(), minlength=resamples * size)
    return counts.reshape(resamples, size).astype(np.float64)


def ratio(part: ArrayLike, whole: ArrayLike) -> Any:
    """part / whole, elementwise; NaN where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    shape = np.broadcast_shapes(part.shape, whole.shape)
    return np.divide(part, whole, out=np.full(shape, np.nan), where=whole != 0)


def interval(values_B: ArrayLike, level: float = LEVEL) -> tuple[float, float] | None:
    """Percentile interval of a figure's resampled values, NaN left out.

    Returns:
        (low, high), or None when no resample has the figure.
    """
    values_B = np.asarray(values_B, np.float64)
    known_B = values_B[np.isfinite(values_B)]
    if not known_B.size:
        return None
    outside = (1 - level) / 2
    low, high = np.quantile(known_B, [outside, 1 - outside])
    return float(low), float(high)


def slope(y_K: ArrayLike) -> Any:
    """Least-squares slope of y over its last axis, counted 1, 2, …; NaN entries are left out.

    Args:
        y_K: [..., K].

    Returns:
        [...]; NaN where fewer than two entries are known.
    """
    y_K = np.asarray(y_K, np.float64)
    known_K = np.isfinite(y_K)
    n = known_K.sum(-1, keepdims=True)
    k_K = np.broadcast_to(np.arange(1, y_K.shape[-1] + 1, dtype=np.float64), y_K.shape)
    k_K = np.where(known_K, k_K, 0.0)
    k_K = np.where(known_K, k_K - ratio(k_K.sum(-1, keepdims=True), n), 0.0)
    return ratio((k_K * np.where(known_K, y_K, 0.0)).sum(-1), (k_K**2).sum(-1))
