"""JSON-lines files that survive a kill: whole lines, on disk when the call returns."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from dspark.artifacts.writing import finite, write_error
from dspark.errors import DataError


def _tail_start(file: IO[bytes]) -> tuple[int, bytes]:
    """Offset and bytes of what follows the last line end of `file` (open for reading)."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        tail = file.read(end - start) + tail
        if (cut := tail.rfind(b"\n")) >= 0:
            return start + cut + 1, tail[cut + 1 :]
        end = start
    return 0, tail


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def repair_jsonl(path: str | Path) -> None:
    """Makes a JSON-lines file end with a whole line: cuts off what a kill left half-written."""
    path = Path(path)
    if not path.exists():
        return
    try:
        with path.open("rb+") as file:
            start, tail = _tail_start(file)
            if not tail:
                return
            if _is_row(tail):  # whole but for its line end
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
            else:
                file.truncate(start)
    except OSError as exc:
        raise write_error(path, exc, DataError) from exc


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends `rows`, one JSON object a line, and returns when they are on disk.

    All rows go out in one write; if the disk is full the file is cut back to what it held. A torn
    last line of an earlier run is removed first. For one writer at a time.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    lines = [json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows]
    if not lines:
        return
    repair_jsonl(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                left = memoryview("".join(lines).encode())
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
    except OSError as exc:
        raise write_error(path, exc, DataError) from exc


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file, `.gz` or plain, one at a time; a torn last line is left out.

    Raises:
        DataError: the file is missing, or a line before the last is not a JSON object.
    """
    path = Path(path)
    try:
        with _open_lines(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    yield row
                elif line.endswith(b"\n"):
                    raise DataError(
                        f"{path} line {number} is not a JSON object",
                        found=line[:60].decode(errors="replace").strip(),
                        fix="Repair or remove the line",
                    )
    except (OSError, EOFError, zlib.error) as exc:
        raise DataError(f"cannot read {path}", found=exc, fix="Check the path and file") from exc


def _open_lines(path: Path) -> IO[bytes]:
    if path.suffix != ".gz":
        return path.open("rb")
    import gzip

    return cast("IO[bytes]", gzip.open(path, "rb"))
