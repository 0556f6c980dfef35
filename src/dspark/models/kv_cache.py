"""Key and value rows of many requests in one contiguous block a layer, and attention over them.

Used by the target's forward and by the drafters' context cache. Rows of a rejected draft need no
clean-up: the next rows written at those positions replace them, and attention never looks past
the positions it is told.

Suffixes: S slots, T packed rows, L positions, G query heads per key-value head, P head_dim.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark import native
from dspark.models.layers import grouped_attention
from dspark.models.padding import Rectangle


class KVCache:
    """Fixed memory for keys and values: ``slots`` requests of up to ``max_len`` positions.

    The rows of a slot lie head by head: attention takes one head at a time, and reading its rows in
    a run is up to a quarter faster than picking them out of every position.

    Args:
        layers, slots, max_len, kv_heads, head_dim: sizes.
        dtype, device: of the stored rows.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        max_len: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.slots, self.max_len = slots, max_len
        self.kv_heads, self.head_dim = kv_heads, head_dim
        shape = (slots * kv_heads * max_len, head_dim)
        self._memory = [_Memory(shape, dtype, device) for _ in range(2 * layers)]
        tensors = [memory.tensor for memory in self._memory]
        self.keys, self.values = tensors[:layers], tensors[layers:]
        self.addresses = native.addresses(self.keys), native.addresses(self.values)

    def places(self, slots_T: Tensor, positions_T: Tensor) -> Tensor:
        """Where :meth:`write` puts the heads of rows: flat indices [T · kv_heads]."""
        heads = torch.arange(self.kv_heads, device=slots_T.device)
        first_TH = (slots_T[:, None] * self.kv_heads + heads) * self.max_len
        return (first_TH + positions_T[:, None]).flatten()

    def write(self, layer: int, places: Tensor, k_THP: Tensor, v_THP: Tensor) -> None:
        """Store the heads of rows at their places."""
        self.keys[layer].index_copy_(0, places, k_THP.flatten(0, 1))
        self.values[layer].index_copy_(0, places, v_THP.flatten(0, 1))

    def view(self, layer: int, slots: slice, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [S, kv_heads, length, P] of neighbouring slots, without a copy."""
        shape = (self.slots, self.kv_heads, self.max_len, self.head_dim)
        keys = self.keys[layer].view(shape)[slots, :, :length]
        values = self.values[layer].view(shape)[slots, :, :length]
        return keys, values

    def forget(self, slot: int) -> None:
        """Give a slot's memory back to the system until it is written again (CPU only)."""
        for memory in self._memory:
            rows = self.kv_heads * self.max_len
            memory.forget(slot * rows, (slot + 1) * rows)


@dataclass(frozen=True, slots=True)
class Rows:
    """The flattened rows of one forward over several requests.

    Rows of one request stand together and in order of position; requests may come in any order.

    Attributes:
        ids_T: token ids.
        positions_T: absolute position of each row.
        slots_T: cache slot of each row.
    """

    ids_T: Tensor
    positions_T: Tensor
    slots_T: Tensor

    @classmethod
    def build(
        cls, requests: list[tuple[int, int, list[int]]], device: torch.device | str = "cpu"
    ) -> Rows:
        """From (slot, first position, token ids) of each request."""
        ids = [i for _, _, tokens in requests for i in tokens]
        positions = [p for _, first, tokens in requests for p in range(first, first + len(tokens))]
        slots = [slot for slot, _, tokens in requests for _ in tokens]
        make = lambda values: torch.tensor(values, dtype=torch.long, device=device)  # noqa: E731
        return cls(make(ids), make(positions), make(slots))


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


class _Memory:
    """A tensor of zeros that takes memory only where it is written, and gives rows back, on a CPU.

    On other devices it takes all of its memory at once, for good.
    """

    def __init__(
        self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self._map: mmap.mmap | None = None
        if torch.device(device).type != "cpu":
            self.tensor = torch.zeros(shape, dtype=dtype, device=device)
            return
        size = max(shape[0] * shape[1] * dtype.itemsize, 1)
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if _CAN_FORGET else {}
        self._map = mmap.mmap(-1, size, **private)
        self.tensor = torch.frombuffer(self._map, dtype=torch.uint8)[:size].view(dtype).view(shape)
        self._row = shape[1] * dtype.itemsize

    def forget(self, first: int, last: int) -> None:
        """Give back the whole pages of rows ``first`` to ``last - 1``; they are zeros again."""
        if self._map is None or not _CAN_FORGET:
            return
        start = -(-first * self._row // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = last * self._row // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


_CAN_FORGET = hasattr(mmap, "MADV_DONTNEED")


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
