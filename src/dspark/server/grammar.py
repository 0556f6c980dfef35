"""Answers that follow a JSON schema, by llguidance: the masks behind `response_format`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dspark.errors import RequestError
from dspark.targets.target import Target

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MOST_KEPT = 64
# As people write it. Free white space would let a model write nothing else for ever.
STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


class JsonGrammars:
    """Compiles schemas for one target, and keeps the latest ones."""

    def __init__(self, target: Target) -> None:
        self._vocabulary = target.spec.vocab_size
        self._stops = sorted(target.stop_ids)
        self._tokenizer = _tokenizer(target.tokenizer, self._vocabulary, self._stops)
        self._kept: dict[str, JsonGrammar] = {}

    def compile(self, schema: dict[str, Any]) -> JsonGrammar:
        """The grammar of a JSON schema; takes up to a second for a large one.

        Raises:
            RequestError: the schema is none, or uses what the library does not know.
        """
        text = json.dumps(schema)
        if text not in self._kept:
            if len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[text] = self._compile(text)
        return self._kept[text]

    def _compile(self, text: str) -> JsonGrammar:
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, defaults=STYLE)
        except ValueError as error:
            raise RequestError("The JSON schema cannot be read", found=error) from error
        wrong, told = LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if wrong or matcher.is_error():
            reason = told[0] if told else matcher.get_error()
            raise RequestError(
                "The JSON schema cannot be served",
                found=" ".join(reason.split())[:300],
                fix="Leave out the keyword it names",
            )
        return JsonGrammar(matcher, self._vocabulary, self._stops)


def _tokenizer(tokenizer: Any, vocabulary: int, stops: list[int]) -> LLTokenizer:
    """The target's tokenizer as the library wants it; its own function imports transformers.

    Raises:
        RequestError: the tokenizer is none of the library `tokenizers`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise RequestError(
            "JSON schemas need a tokenizer of the library tokenizers",
            found=type(tokenizer).__name__,
            fix="Leave response_format out",
        )
    bare = copy(backend)
    bare.no_padding()
    bare.no_truncation()
    return LLTokenizer(bare.to_str(), n_vocab=vocabulary, eos_token=stops)


class JsonGrammar:
    """A compiled schema, shared by the answers that follow it (`core.Grammar`)."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, stops: Sequence[int]) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._ended_V = np.zeros(vocabulary, dtype=bool)
        self._ended_V[list(stops)] = True

    def start(self) -> JsonState:
        return JsonState(self._matcher.deep_copy(), self._vocabulary, self._ended_V)


class JsonState:
    """How far one answer has come (`core.GrammarState`); used by one thread at a time."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, ended_V: NDArray[np.bool_]) -> None:
        self._matcher, self._vocabulary, self._ended_V = matcher, vocabulary, ended_V

    def advance(self, ids: Sequence[int]) -> None:
        """Take in committed tokens.

        Raises:
            ValueError: they are not allowed, or the library failed.
        """
        taken = self._matcher.try_consume_tokens(list(ids))
        self._check()
        if not self._only_ends(ids[taken:]):
            raise ValueError(f"token {ids[taken]} is not allowed")

    def allowed(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
        """Tokens [V] that may follow the committed ones and ``ids``; None where those may not.

        Raises:
            ValueError: the library failed, as it does where a schema asks for too much work.
        """
        taken = self._matcher.try_consume_tokens(list(ids)) if ids else 0
        mask_V = self._mask() if self._only_ends(ids[taken:]) else None
        if taken:
            self._matcher.rollback(taken)
        self._check()
        return mask_V

    def _mask(self) -> NDArray[np.bool_]:
        if self._matcher.is_stopped():  # a draft may go on behind the end, with nothing but ends
            return self._ended_V
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(bool)

    def _only_ends(self, rest: Sequence[int]) -> bool:
        """Whether what was not consumed of a text is nothing, or stands behind its end."""
        return not rest or (self._matcher.is_stopped() and bool(self._ended_V[list(rest)].all()))

    def _check(self) -> None:
        """Tell of an error: the library itself would from then on allow the end and no more."""
        if self._matcher.is_error():
            raise ValueError(" ".join(self._matcher.get_error().split())[:300])
