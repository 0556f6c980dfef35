"""Reading data files that people and other programs wrote, JSON lines with line numbers.

Unlike the reader in `artifacts`, which forgives the torn last line of our own append-only logs,
this one is strict: training data with a hole in it should be noticed. Every error names the file
and, once a line was reached, its number: `answers.jsonl:17`.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from dspark.artifacts import bad_byte, find_data
from dspark.data.bad_rows import BadRows
from dspark.errors import DataError

__all__ = ["find_data", "place", "read_jsonl"]  # find_data is passed on for the readers' sake


def place(path: str | Path, line: int) -> str:
    """How messages point at one line of a file: `path:line`, lines counted from 1."""
    return f"{path}:{line}"


def read_jsonl(
    path: str | Path, bad_rows: BadRows | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line of a JSON-lines file.

    Names ending in `.gz` are decompressed on the way. Blank lines are passed over. Errors come
    up while iterating, not at the call.

    Args:
        bad_rows: what to do with a line that is not a JSON object in UTF-8; None stops at it.

    Raises:
        DataError: the file cannot be read or decompressed, a line is not a JSON object in
            UTF-8, or the file holds no object at all.
    """
    path, bad_rows = Path(path), bad_rows or BadRows()
    number, rows = 0, 0
    try:
        with _open_binary(path) as file:
            # Binary lines, so that a byte that is not UTF-8 is reported with its line.
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                rows += 1
                try:
                    row = _parse(line, place(path, number))
                except DataError as error:
                    bad_rows.meet(error, place(path, number))
                    continue
                yield number, row
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
        text = line.rstrip(b"\r\n").decode(
            "utf-8-sig"
        )  # some editors put a mark in front of line 1
    except UnicodeDecodeError as error:
        spot = bad_byte(error).replace(" line 1, ", " ")
        raise DataError(f"{where} is not UTF-8", found=spot, fix=fix) from error
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise DataError(f"{where} is not JSON", found=found, fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON", found=error, fix=fix) from error
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object", found=type(row).__name__, fix=fix)
    if "\\u" in text and (half := _HALF.match(text)) is not None:
        raise DataError(
            f"{where} holds half of a surrogate pair",
            found=f"{half['half']} at column {half.start('half') + 1}",
            fix="Write the whole character, or take the row out",
        )
    return row


# A surrogate as JSON spells it without its other half. Backslashes come in pairs unless they spell
# something, so the first alternatives step over what is whole.
_HALF = re.compile(
    r"""(?:[^\\]|\\[^u]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}
    |\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+
    (?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})""",
    re.VERBOSE | re.DOTALL,
)
