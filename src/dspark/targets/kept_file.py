"""One file of kept tensors and texts, whole or absent, mapped into memory when it is read.

Layout: `MAGIC`, length of the header, SHA-256 of the header, the header in JSON, and the blobs,
each at a multiple of `ALIGN` bytes. The header has the caller's fields, and of each blob its place.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspark.artifacts import atomic_write_parts
from dspark.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"dspark.kept/1\0\0\0"
ALIGN = 64
_HEAD = struct.Struct(f"<{len(MAGIC)}sQ32s")
# What is looked at each time, besides the header: so many bytes at so many places.
_SAMPLE, _SAMPLES = 1024, 64


def write(path: Path, fields: Mapping[str, Any], blobs: Mapping[str, Tensor | bytes]) -> None:
    """Write a file, whole or not at all.

    Args:
        fields: of the header, plain values.
        blobs: by name; tensors lie on a processor and in one piece.

    Raises:
        CheckpointError: it cannot be written.
    """
    end = 0
    table: dict[str, Any] = {}
    placed: list[tuple[int, _Blob]] = []
    for name, value in blobs.items():
        blob = _Blob(value)
        start = -(-end // ALIGN) * ALIGN
        end = start + blob.size
        placed.append((start, blob))
        table[name] = {"start": start, "bytes": blob.size, "dtype": blob.dtype, "shape": blob.shape}
    sampled = _digest_samples(placed, end)
    header = json.dumps({**fields, "blobs": table, "size": end, "samples": sampled}).encode()
    head = _HEAD.pack(MAGIC, len(header), hashlib.sha256(header).digest()) + header

    def parts() -> Iterator[bytes | memoryview]:
        yield head.ljust(-(-len(head) // ALIGN) * ALIGN, b"\0")
        at = 0
        for start, blob in placed:
            yield b"\0" * (start - at)
            yield blob.view
            at = start + blob.size

    atomic_write_parts(path, parts(), error=CheckpointError)


class _Blob:
    """A tensor or bytes as bytes."""

    def __init__(self, value: Tensor | bytes) -> None:
        self.dtype: str | None = None
        self.shape: list[int] | None = None
        if isinstance(value, bytes):
            self.view = memoryview(value)
        else:
            import torch

            self.dtype, self.shape = str(value.dtype).removeprefix("torch."), list(value.shape)
            whole: Any = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            self.view = memoryview(whole)
        self.size = len(self.view)


def _places(size: int) -> list[tuple[int, int]]:
    """Where samples of so many bytes lie: start and end, the last at the very end."""
    gap = max((size - _SAMPLE) // (_SAMPLES - 1), 1)
    starts = sorted({min(i * gap, max(size - _SAMPLE, 0)) for i in range(_SAMPLES)})
    return [(start, min(start + _SAMPLE, size)) for start in starts]


def _digest_samples(blobs: list[tuple[int, _Blob]], size: int) -> str:
    digest = hashlib.sha256()
    for start, end in _places(size):
        sample = bytearray(end - start)
        for first, blob in blobs:
            low, high = max(start, first), min(end, first + blob.size)
            if low < high:
                sample[low - start : high - start] = blob.view[low - first : high - first]
        digest.update(sample)
    return digest.hexdigest()


def read_header(path: Path) -> dict[str, Any] | None:
    """The header's fields; None where the file is missing, cut short, damaged or something else."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        magic, length, expected = _HEAD.unpack(file.read(_HEAD.size).ljust(_HEAD.size, b"\0"))
        size = os.fstat(file.fileno()).st_size
        if magic != MAGIC or length > size:
            return None
        header = file.read(length)
        if hashlib.sha256(header).digest() != expected:
            return None
        fields: dict[str, Any] = json.loads(header)
        first = -(-(_HEAD.size + length) // ALIGN) * ALIGN
        return {**fields, "first": first} if size == first + fields["size"] else None
    return None


class KeptFile:
    """A file that `write` made, mapped: what nobody looks at is not read from disk.

    Changes of the tensors stay in this process.

    Args:
        path: of a file whose header is `fields`.
        fields: see `read_header`.

    Raises:
        CheckpointError: it is damaged, or was replaced meanwhile.
    """

    def __init__(self, path: Path, fields: dict[str, Any]) -> None:
        self.fields, self._blobs = fields, fields["blobs"]
        try:
            with path.open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}", found=error, fix="Remove it") from error
        self._bytes = memoryview(memory)[fields["first"] :]
        digest = hashlib.sha256()
        for start, end in _places(fields["size"]):
            digest.update(self._bytes[start:end])
        if len(self._bytes) != fields["size"] or digest.hexdigest() != fields["samples"]:
            raise CheckpointError(f"{path} is damaged", fix="Remove it")
        if hasattr(memory, "madvise"):  # all of it is needed, in order
            with suppress(OSError):
                memory.madvise(mmap.MADV_WILLNEED)

    def __contains__(self, name: str) -> bool:
        return name in self._blobs

    def text(self, name: str) -> bytes:
        """Bytes of a blob."""
        start = self._blobs[name]["start"]
        return bytes(self._bytes[start : start + self._blobs[name]["bytes"]])

    def tensor(self, name: str) -> Tensor:
        """A blob as the tensor it was; it keeps the mapping alive."""
        import torch

        blob = self._blobs[name]
        dtype = getattr(torch, blob["dtype"])
        if not blob["bytes"]:
            return torch.empty(blob["shape"], dtype=dtype)
        count = blob["bytes"] // dtype.itemsize
        start = self._bytes[blob["start"] :]
        return torch.frombuffer(start, dtype=dtype, count=count).view(blob["shape"])
