"""Where bytes are not the text they should be."""

from __future__ import annotations


def bad_byte(error: UnicodeDecodeError) -> str:
    """The first byte that is no text, with its line and its place there, both from 1."""
    data, start = bytes(error.object), error.start
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16, by its first bytes"
    line, column = data.count(b"\n", 0, start) + 1, start - data.rfind(b"\n", 0, start)
    return f"byte 0x{data[start]:02x} at line {line}, byte {column}"
