"""What each token of a tokenizer stands for, byte by byte: a token may be part of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from dspark.targets.detokenize import KEPT

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's bytes without a piece
_SPACE = "\u2581"  # and its spaces


def _byte_level() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary (GPT-2's table): printable ones
    stand for themselves, the others for the characters from 256 on, in order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


class TokenBytes:
    """Bytes of a tokenizer's single tokens, remembered; special tokens have those of their names.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = getattr(tokenizer, "added_tokens_decoder", {})
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        kinds = set() if decoder is None else set(_kinds(json.loads(decoder.__getstate__())))
        self._table = _byte_level() if "ByteLevel" in kinds else None
        self._pieces = bool(kinds & {"ByteFallback", "Metaspace"})
        self.of = lru_cache(KEPT)(self._bytes)

    def _bytes(self, token_id: int) -> bytes:
        """The token's bytes; none for an id that the tokenizer does not know."""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if token_id not in self._added:
            if self._table is not None and all(char in self._table for char in token):
                return bytes(self._table[char] for char in token)
            if self._pieces:
                byte = _BYTE.fullmatch(token)
                return bytes.fromhex(byte[1]) if byte else token.replace(_SPACE, " ").encode()
        return str(self._tokenizer.decode([token_id])).encode()


def _kinds(decoder: dict[str, Any]) -> Iterator[str]:
    """Types of a decoder and of those inside it."""
    yield decoder["type"]
    for inner in decoder.get("decoders", ()):
        yield from _kinds(inner)
