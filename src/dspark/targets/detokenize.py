"""Token ids to text as they arrive, never cutting a character in two."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

KEPT = 16_384  # texts of single tokens, the commonest of any vocabulary


class TokenTexts:
    """Texts of a tokenizer's single tokens, remembered; streams of many answers share them.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Attributes:
        add_up: the text of several tokens is their texts end to end, but for characters that
            lie in more than one of them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.of = lru_cache(KEPT)(lambda token_id: self.decode([token_id]))
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        # Bytes end to end. Others strip or join spaces, which depends on the tokens beside.
        self.add_up = type(decoder).__name__ == "ByteLevel" and not getattr(
            tokenizer, "clean_up_tokenization_spaces", True
        )

    def decode(self, ids: list[int]) -> str:
        """Text of tokens, special ones left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class TextStream:
    """Gives the text that each token adds.

    Only a short tail is decoded again, so the work does not grow with the text. A token that ends
    inside a multi-byte character gives nothing; the one that completes it gives all of it.

    Args:
        tokenizer: a Hugging Face tokenizer, or what is remembered of it.
    """

    def __init__(self, tokenizer: Any) -> None:
        texts = tokenizer if isinstance(tokenizer, TokenTexts) else TokenTexts(tokenizer)
        self._texts: TokenTexts = texts
        self._ids: list[int] = []
        self._start = 0  # first token that is decoded again
        self._shown = 0  # tokens whose text is out

    def push(self, token_id: int) -> str:
        """Text that this token completes."""
        alone = self._texts.add_up and self._shown == len(self._ids)  # nothing is held back
        self._ids.append(token_id)
        if alone:
            before, now = "", str(self._texts.of(token_id))
        else:
            before = self._text(self._start, self._shown)
            now = self._text(self._start, len(self._ids))
        if now.endswith("\ufffd"):  # half a character
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What is still held back, broken characters included."""
        before = self._text(self._start, self._shown)
        self._shown = len(self._ids)
        return self._text(self._start, len(self._ids))[len(before) :]

    def _text(self, start: int, end: int) -> str:
        if end - start == 1:
            return str(self._texts.of(self._ids[start]))
        return self._texts.decode(self._ids[start:end])
