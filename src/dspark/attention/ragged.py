"""Attention of flattened rows: to the cache of each row's own request, or inside whole sequences.

Suffixes: T packed rows, L positions, G query heads per key-value head, P head_dim, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark import native
from dspark.attention.grouped import grouped_attention
from dspark.attention.kv_cache import KVCache, Rows
from dspark.attention.padding import Rectangle


@dataclass(frozen=True, slots=True)
class _Part:
    """Requests in neighbouring slots with equally many rows: one attention call without padding."""

    slots: slice
    rows: slice
    requests: int
    n: int
    length: int


class CachedAttention:
    """Ragged attention: each row sees its own request's cache up to its own position.

    Linear layers around it work on T packed rows. Here requests are taken in parts that need no
    padding of rows and little of cache length, so the work follows the number of rows. Query
    heads that share a key-value head are folded into the row dimension, so keys are never
    repeated in memory.

    Args:
        cache: where this forward's keys and values go and come from.
        rows: positions and slots of the rows.
        windows: per layer the sliding window, or None.
        scale: factor on the scores.
        block: where each request has so many rows that see each other in both directions (a draft
            block); 0 where every row sees only up to itself.
    """

    def __init__(
        self,
        cache: KVCache,
        rows: Rows,
        windows: tuple[int | None, ...],
        scale: float,
        block: int = 0,
    ) -> None:
        self.cache, self.rows, self.windows, self.scale = cache, rows, windows, scale
        self.block = block
        self.native = native.can_attend(cache.keys[0], cache.head_dim)
        if self.native:
            self._spans: dict[int | None, tuple[Tensor, Tensor]] = {}
            return
        self.places = cache.places(rows.slots_T, rows.positions_T)
        self.parts = _split(rows)
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def _mask(self, index: int, window: int | None, groups: int, like: Tensor) -> Tensor | None:
        key = (index, window)
        if key not in self._masks:
            part = self.parts[index]
            at = self.rows.positions_T[part.rows].view(part.requests, part.n, 1)
            seen = at
            if self.block:
                seen = at.max(1, keepdim=True).values.expand_as(at)
            place = torch.arange(part.length, device=at.device)
            allowed = place <= seen
            if window is not None:
                allowed = allowed & (place > at - window)
            mask = None
            if not bool(allowed.all()):
                mask = torch.zeros(allowed.shape, dtype=like.dtype, device=at.device)
                mask.masked_fill_(~allowed, float("-inf"))
                mask = mask.repeat_interleave(groups, 1)[:, None]
            self._masks[key] = mask
        return self._masks[key]

    def __call__(self, layer: int, q_THP: Tensor, k_THP: Tensor, v_THP: Tensor) -> Tensor:
        """Write this layer's keys and values, attend; returns [T, heads · P]."""
        if self.native:
            return self._attend(layer, q_THP, k_THP, v_THP)
        self.cache.write(layer, self.places, k_THP, v_THP)
        kv_heads, size = self.cache.kv_heads, self.cache.head_dim
        groups, window = q_THP.shape[1] // kv_heads, self.windows[layer]
        outs = []
        for index, part in enumerate(self.parts):
            keys, values = self.cache.view(layer, part.slots, part.length)
            shape = (part.requests, part.n, kv_heads, groups, size)
            folded = q_THP[part.rows].view(shape).transpose(1, 2)
            mask = self._mask(index, window, groups, q_THP)
            out = F.scaled_dot_product_attention(
                folded.reshape(part.requests, kv_heads, -1, size),
                keys,
                values,
                mask,
                scale=self.scale,
            )
            out = out.view(part.requests, kv_heads, part.n, groups, size).transpose(1, 2)
            outs.append(out.reshape(part.requests * part.n, -1))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _attend(self, layer: int, q_THP: Tensor, k_THP: Tensor, v_THP: Tensor) -> Tensor:
        """The same by our own kernel, row by row."""
        cache, rows = self.cache, self.rows
        return native.attend(
            q_THP,
            k_THP,
            v_THP,
            cache.keys[layer],
            cache.values[layer],
            rows.slots_T,
            rows.positions_T,
            self._seen(self.windows[layer]),
            cache.max_len,
            self.scale,
        )

    def run(
        self,
        stack: native.NativeStack,
        x_TD: Tensor,
        tables: tuple[Tensor, Tensor],
        tap_ids: Sequence[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Whole layers over the rows by our own kernel, where `can_run` says so.

        Returns:
            The last layer's output [T, D], and those of `tap_ids`.
        """
        rows, cache = self.rows, self.cache
        seen = self._seen(self.windows[0])
        batch = native.NativeBatch(
            tables, rows.slots_T, rows.positions_T, seen, cache.slots, cache.max_len
        )
        return batch.run(stack, x_TD, *cache.addresses, tap_ids)

    @property
    def can_run(self) -> bool:
        """Whether :meth:`run` serves: our kernels do, and all layers see the same rows."""
        return self.native and len(set(self.windows)) == 1

    def _seen(self, window: int | None) -> tuple[Tensor, Tensor]:
        """The first position each row sees, and the one after the last."""
        if window not in self._spans:
            rows = self.rows
            stops_T = rows.positions_T + 1
            if self.block:
                stops_R1 = stops_T.view(-1, self.block)[:, -1:]
                stops_T = stops_R1.expand(-1, self.block).reshape(-1)
            firsts_T = torch.zeros_like(stops_T)
            if window is not None:
                firsts_T = (rows.positions_T + 1 - window).clamp_min(0)
            self._spans[window] = firsts_T, stops_T
        return self._spans[window]


class PackedAttention:
    """Causal attention inside each of several whole sequences laid end to end; nothing is kept.

    Queries go in blocks, so that keys after a block are never touched; on a GPU all sequences go at
    once, padded, where no window cuts them.

    Args:
        lengths: tokens of each sequence, in row order.
        windows, scale: as in :class:`CachedAttention`.
        block: queries handled at once; bounds the score matrix.
    """

    def __init__(
        self,
        lengths: list[int],
        windows: tuple[int | None, ...],
        scale: float,
        block: int = 256,
    ) -> None:
        self.lengths, self.windows, self.scale, self.block = lengths, windows, scale, block
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}
        self._rectangle: Rectangle | None = None

    def __call__(self, layer: int, q_THP: Tensor, k_THP: Tensor, v_THP: Tensor) -> Tensor:
        """Attend within each sequence; returns [T, heads · P]."""
        window, start, outs = self.windows[layer], 0, []
        if window is None and q_THP.device.type == "cuda":
            return self._padded(q_THP, k_THP, v_THP)
        for length in self.lengths:
            for first in range(0, length, self.block):
                last = min(first + self.block, length)
                low = 0 if window is None else max(0, first - window + 1)
                keys = slice(start + low, start + last)
                mask = self._mask(first - low, last - first, window, q_THP)
                rows = slice(start + first, start + last)
                outs.append(
                    grouped_attention(q_THP[rows], k_THP[keys], v_THP[keys], mask, self.scale)
                )
            start += length
        return torch.cat(outs)

    def _padded(self, *heads: Tensor) -> Tensor:
        """All sequences in one call; no query looks at what stands behind a sequence's end."""
        if self._rectangle is None:
            self._rectangle = Rectangle(self.lengths, heads[0].device)
        q, k, v = (self._rectangle.pad(x).transpose(1, 2) for x in heads)
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.scale, enable_gqa=True
        )
        return self._rectangle.pack(out.transpose(1, 2)).flatten(1)

    def _mask(self, before: int, rows: int, window: int | None, like: Tensor) -> Tensor:
        """Additive [rows, before + rows]: row i sees keys up to before + i, within the window."""
        key = (before, rows, window)
        if key not in self._masks:
            at = torch.arange(before, before + rows, device=like.device)[:, None]
            place = torch.arange(before + rows, device=like.device)
            seen = place <= at
            if window is not None:
                seen = seen & (place > at - window)
            mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
            self._masks[key] = mask.masked_fill_(~seen, float("-inf"))
        return self._masks[key]


def _split(rows: Rows, most: int = 4096) -> list[_Part]:
    """Parts of neighbouring requests with equal row counts and like lengths, few enough that
    padding to the longest costs less than another call (``most`` cache positions, or 8).

    On a GPU any padding costs less.
    """
    on_gpu = rows.slots_T.device.type == "cuda"
    slots, counts = torch.unique_consecutive(rows.slots_T, return_counts=True)
    slots, counts = slots.tolist(), counts.tolist()
    ends = torch.tensor(counts).cumsum(0)
    lengths = (rows.positions_T[ends.to(rows.positions_T.device) - 1] + 1).tolist()
    parts, begin, row = [], 0, 0
    for i in range(1, len(slots) + 1):
        if i < len(slots):
            joins = slots[i] == slots[i - 1] + 1 and counts[i] == counts[begin]
            if joins and on_gpu:
                continue
            low, high = min(lengths[begin : i + 1]), max(lengths[begin : i + 1])
            small = i - begin < 8 or (i - begin) * high < most
            if joins and small and high < 2 * low + 16:
                continue
        requests, n = i - begin, counts[begin]
        stop = row + requests * n
        where = slice(slots[begin], slots[begin] + requests)
        parts.append(_Part(where, slice(row, stop), requests, n, max(lengths[begin:i])))
        begin, row = i, stop
    return parts
