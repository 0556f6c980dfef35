"""Reading data files that people and other programs wrote, JSON lines with line numbers.

Unlike the reader in `artifacts`, which forgives the torn last line of our own append-only logs,
this one is strict: training data with a hole in it should be noticed. Every error names the file
and, once a line was reached, its number: `answers.jsonl:17`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from dspark.artifacts import find_data
from dspark.errors import DataError

__all__ = ["find_data", "place", "read_jsonl"]  # find_data is passed on for the readers' sake


def place(path: str | Path, line: int) -> str:
    """How messages point at one line of a file: `path:line`, lines counted from 1."""
    return f"{path}:{line}"


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line of a JSON-lines file.

    Names ending in `.gz` are decompressed on the way. Blank lines are passed over. Errors come
    up while iterating, not at the call.

    Raises:
        DataError: the file cannot be read or decompressed, a line is not a JSON object in
            UTF-8, or the file holds no object at all.
    """
    path = Path(path)
    number, rows = 0, 0
    try:
        with _open_binary(path) as file:
            # Binary lines, so that a byte that is not UTF-8 is reported with its line.
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows += 1
                    yield number, _parse(line, place(path, number))
    except (OSError, EOFError, zlib.error) as error:  # gzip damage is any of the three
        raise DataError(
            f"cannot read {path} after line {number}",
            found=error,
            fix="Check that the file exists, is readable and was copied whole",
        ) from error
    if rows == 0:
        raise DataError(
            f"{path} is empty", fix="It needs at least one line with a JSON object; write it again"
        )


def _open_binary(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    """One line as an object; `where` goes into the message."""
    fix = "Each line must be one JSON object in UTF-8"
    try:
        row = json.loads(line.decode("utf-8-sig"))  # some editors put a mark in front of line 1
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON", found=error, fix=fix) from error
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object", found=type(row).__name__, fix=fix)
    return row
