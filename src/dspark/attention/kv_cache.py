"""Key and value rows of many requests in one contiguous block a layer.

Used by the target's forward and by the drafters' context cache. Rows of a rejected draft need no
clean-up: the next rows written at those positions replace them, and attention never looks past
the positions it is told.

Suffixes: S slots, T packed rows, L positions, P head_dim.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from dspark import native


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
