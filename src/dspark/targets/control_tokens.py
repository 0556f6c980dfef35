"""Text to token ids without letting text become control tokens.

A tokenizer makes a control token of its spelling wherever it stands, so a user's `<|im_end|>` would
end the user's turn. Here control tokens have *marks* in place of their spellings: strings that
nobody can guess, made anew in each process. Marks become control tokens, and spellings are text.

The tokenizer behind is the same in all but those names, so text without spellings gives the ids it
always gives.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from dspark.errors import RequestError

# Added tokens that are no special ones to the tokenizer, and yet nothing that people write.
_RESERVED = re.compile(r"<[|\uff5c].*[|\uff5c]>|.*(unused|reserved).*", re.DOTALL)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # what is in no vocabulary is spelled in such bytes
_OPEN, _CLOSE = "\ue000", "\ue001"


class ControlTokens:
    """The control tokens of a tokenizer, and text that holds marks of them.

    Control tokens are the special ones, those that end an answer, and those of the other added
    tokens that the chat template writes or that are spelled like `<|name|>`.

    Args:
        tokenizer: a Hugging Face tokenizer.
        templates: sources of its chat templates.
        stop_ids: tokens that end an answer.

    Attributes:
        characters: that spellings are made of, white space left out.
    """

    def __init__(
        self, tokenizer: Any, templates: Iterable[str] = (), stop_ids: Iterable[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        added = dict(getattr(tokenizer, "added_tokens_decoder", None) or {})
        written, stops = "\0".join(templates), set(stop_ids)
        control = {
            token.content: i
            for i, token in added.items()
            if token.special
            or i in stops
            or token.content in written
            or _RESERVED.fullmatch(token.content)
        }
        control |= {
            text: int(tokenizer.convert_tokens_to_ids(text))
            for text in getattr(tokenizer, "all_special_tokens", [])
        }
        control.pop("", None)
        self._ids = control
        nonce = f"{secrets.randbelow(10**20):020}"
        self._marks = {
            text: f"{_OPEN}{nonce}{number}{_CLOSE}" for number, text in enumerate(control)
        }
        self._spellings = {mark: text for text, mark in self._marks.items()}
        self._mark = re.compile(f"{_OPEN}{nonce}\\d+{_CLOSE}")
        self._lengths = sorted({len(text) for text in control}, reverse=True)
        self.characters = {char for text in control for char in text if not char.isspace()}
        firsts = "".join(map(re.escape, sorted({text[0] for text in control})))
        self._first = re.compile(f"[{firsts}]" if firsts else "(?!)")
        self._plain, self._added = _renamed(tokenizer, added, self._marks, control)
        self._around: tuple[list[int], list[int]] | None = None

    def spelled(self, text: str) -> list[str]:
        """The control tokens whose spellings stand in a text, in order."""
        return [spelling for _, spelling in self._find(text)]

    def marked(self, text: str) -> str:
        """The text with marks in place of spellings."""
        return self.replaced(text, self._marks)

    def replaced(self, text: str, by: dict[str, str]) -> str:
        """The text with others in place of spellings."""
        parts, end = [], 0
        for start, spelling in self._find(text):
            parts += [text[end:start], by[spelling]]
            end = start + len(spelling)
        return "".join([*parts, text[end:]])

    def unmarked(self, text: str) -> str:
        """The text with spellings in place of marks."""
        return self._mark.sub(lambda found: self._spellings[found[0]], text)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which marks stand for control tokens; nothing is put around it.

        Raises:
            RequestError: a spelling cannot be written as text.
        """
        if self._plain is None:  # a tokenizer in Python; it has no parts to make another of
            self._refuse(self.spelled(text))
            ids = self._tokenizer(self.unmarked(text), add_special_tokens=False, verbose=False)
            return list(ids["input_ids"])
        found = self._plain.encode(text, add_special_tokens=False).ids
        reserved, unknown = set(self._ids.values()), self._tokenizer.unk_token_id
        # A vocabulary that holds the spelling as a word finds it without knowing it for a token.
        words = [i for i in found if i not in self._added and i in reserved and i != unknown]
        self._refuse([s for s, i in self._ids.items() if i in words and not _BYTE.fullmatch(s)])
        return [self._added.get(i, i) for i in found]

    def encode_text(self, text: str) -> list[int]:
        """Ids of a bare text, all of it text, with what the tokenizer puts around one.

        Raises:
            RequestError: a spelling cannot be written as text.
        """
        if self._around is None:
            whole, bare = (self._tokenizer("a", add_special_tokens=on) for on in (True, False))
            self._around = _around(list(whole["input_ids"]), list(bare["input_ids"]))
        before, after = self._around
        return [*before, *self.encode(text), *after]

    def _find(self, text: str) -> Iterator[tuple[int, str]]:
        """Start and spelling of each control token; the longest one that starts first."""
        end = 0
        for start in (match.start() for match in self._first.finditer(text)):
            if start < end:
                continue
            for length in self._lengths:
                if (spelling := text[start : start + length]) in self._ids:
                    end = start + length
                    yield start, spelling
                    break

    def _refuse(self, spellings: list[str]) -> None:
        if spellings:
            raise RequestError(
                "The text spells a control token, which this target's tokenizer cannot keep apart",
                found=spellings[0],
                fix="Write it otherwise",
            )


def _renamed(
    tokenizer: Any, added: dict[int, Any], marks: dict[str, str], control: dict[str, int]
) -> tuple[Any, dict[int, int]]:
    """A tokenizer that knows control tokens by their marks, and what its added ids stand for.

    None where the tokenizer is none of the library `tokenizers`, or where a mark would not stay
    whole.
    """
    from tokenizers import AddedToken, Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None, {}
    plain = Tokenizer(backend.model)  # shared, not copied
    for part in ("normalizer", "pre_tokenizer"):
        if getattr(backend, part) is not None:
            setattr(plain, part, getattr(backend, part))
    for text in control.keys() - {token.content for token in added.values()}:
        added = added | {control[text]: AddedToken(text, special=True, normalized=False)}
    tokens = [
        AddedToken(
            marks.get(token.content, token.content),
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=token.special,
        )
        for _, token in sorted(added.items())
    ]
    plain.add_tokens([token for token in tokens if not token.special])
    plain.add_special_tokens([token for token in tokens if token.special])
    names = [(marks.get(token.content, token.content), i) for i, token in added.items()]
    ids = {plain.token_to_id(name): i for name, i in names}
    whole = all(
        [ids.get(found) for found in plain.encode(mark, add_special_tokens=False).ids]
        == [control[text]]
        for text, mark in marks.items()
    )
    return (
        (plain, {i: theirs for i, theirs in ids.items() if i is not None}) if whole else (None, {})
    )


def _around(whole: list[int], bare: list[int]) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and after a text."""
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []
