"""Cache slots: which rows of the caches belong to which request."""

from __future__ import annotations

import heapq


class SlotPool:
    """Slots 0 to ``size - 1``, the lowest free one first.

    Slots in use stay dense that way, and neighbouring slots are read from the cache without a
    gather.
    """

    def __init__(self, size: int) -> None:
        assert size >= 1
        self.size = size
        self._free = list(range(size))
        self._used: set[int] = set()

    def __len__(self) -> int:
        """Free slots."""
        return len(self._free)

    def acquire(self) -> int:
        """Take the lowest free slot; there must be one."""
        assert self._free, "ask len() before acquiring"
        slot = heapq.heappop(self._free)
        assert slot not in self._used
        self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Give back a slot that was acquired."""
        assert slot in self._used, f"slot {slot} is not in use"
        self._used.remove(slot)
        heapq.heappush(self._free, slot)
