"""From tokens to the text that may be shown: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dspark.core import TokenKind, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer.

    Attributes:
        id: in the target's vocabulary.
        text: what it adds; "" where a later token completes its character.
        kind: how it came about.
        logprobs: of the token and of the likeliest ones, where they were asked for.
    """

    id: int
    text: str
    kind: TokenKind
    logprobs: TokenLogprobs | None = None


class StopStrings:
    """Holds tokens back while their text could be the beginning of a stop string.

    Tokens that come out, put end to end, are the text before the first stop string.

    Args:
        stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held: list[Token] = []

    def push(self, token: Token) -> tuple[list[Token], bool]:
        """Take the next token.

        Returns:
            Tokens to show now, the last one cut where a stop string begins; and whether one was
            met. Nothing may be pushed after that.
        """
        if not self._stops:
            return [token], False
        self._held.append(token)
        text = "".join(held.text for held in self._held)
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if not found:
            return self._take(len(text) - self._open(text)), False
        shown = self._take(min(found))
        rest = min(found) - sum(len(token.text) for token in shown)
        if rest:
            shown.append(replace(self._held[0], text=self._held[0].text[:rest]))
        return shown, True

    def flush(self) -> list[Token]:
        """What is still held back, once no token follows."""
        held, self._held = self._held, []
        return held

    def _open(self, text: str) -> int:
        """Length of the longest end of the text that could begin a stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(text))
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

    def _take(self, length: int) -> list[Token]:
        """The held tokens that lie within the first `length` characters."""
        end = count = 0
        for token in self._held:
            end += len(token.text)
            if end > length:
                break
            count += 1
        taken, self._held = self._held[:count], self._held[count:]
        return taken
