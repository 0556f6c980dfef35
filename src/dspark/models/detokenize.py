"""Token ids to text as they arrive, never cutting a character in two."""

from __future__ import annotations

from typing import Any


class TextStream:
    """Gives the text that each token adds.

    Only a short tail is decoded again, so the work does not grow with the text. A token that ends
    inside a multi-byte character gives nothing; the one that completes it gives all of it.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # first token that is decoded again
        self._shown = 0  # tokens whose text is out

    def push(self, token_id: int) -> str:
        """Text that this token completes."""
        self._ids.append(token_id)
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
        return str(self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True))
