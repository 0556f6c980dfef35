"""The JSON of answers, whole and in chunks, as OpenAI's two endpoints word it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import uuid4

from dspark.core import RoundRecord
from dspark.server.answer import Answer, Piece
from dspark.server.text import Token
from dspark.targets.token_bytes import TokenBytes

Json = dict[str, Any]
LEAST_LOGPROB = -9999.0  # JSON has no minus infinity


@dataclass
class Wire(ABC):
    """Words the answers of one request.

    Attributes:
        model: its name.
        octets: of the target's tokens, for the words of log probabilities.
        stop_ids: tokens that end an answer and are not part of it.
        logprobs: log probabilities were asked for.
        tokens: how each token came about was asked for.
    """

    model: str
    octets: TokenBytes
    stop_ids: frozenset[int]
    logprobs: bool = False
    tokens: bool = False
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()), init=False)

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid4().hex}"

    def whole(self, answers: Sequence[Answer], usage: Json) -> Json:
        """A complete answer."""
        choices = [self.choice(answer) for answer in answers]
        return {**self._head(self.whole_object), "choices": choices, "usage": usage}

    def chunk(self, choices: list[Json], **more: Any) -> Json:
        """One event of a stream."""
        return {**self._head(self.chunk_object), "choices": choices, **more}

    def _head(self, name: str) -> Json:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    @abstractmethod
    def choice(self, answer: Answer) -> Json:
        """A complete answer among the choices."""

    @abstractmethod
    def opening(self, index: int) -> Json | None:
        """The first choice of a stream, before there is text."""

    @abstractmethod
    def delta(self, piece: Piece) -> Json:
        """What a piece adds."""

    @abstractmethod
    def closing(self, piece: Piece) -> Json:
        """The choice that says why the answer ended."""

    def worded(self, token_id: int) -> str:
        """A token's own text; bytes of parts of characters as OpenAI writes them, `\\xf0`."""
        return self.octets.of(token_id).decode("utf-8", "backslashreplace")

    def visible(self, tokens: Sequence[Token]) -> list[Token]:
        """Tokens that are part of the answer."""
        return [token for token in tokens if token.id not in self.stop_ids]


class ChatWire(Wire):
    """`/v1/chat/completions`."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, answer: Answer) -> Json:
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
        if self.tokens:
            message["dspark"] = provenance_of(answer)
        shown = [token for piece in answer.pieces for token in piece.shown]
        return {
            "index": answer.index,
            "message": message,
            "logprobs": self._likely(shown),
            "finish_reason": answer.finish,
        }

    def opening(self, index: int) -> Json:
        return _choice(index, delta={"role": "assistant", "content": ""})

    def delta(self, piece: Piece) -> Json:
        delta = {"content": piece.text}
        return _choice(piece.index, delta=delta, logprobs=self._likely(piece.shown))

    def closing(self, piece: Piece) -> Json:
        return _choice(piece.index, piece.finish, delta={})

    def _likely(self, tokens: Sequence[Token]) -> Json | None:
        if not self.logprobs:
            return None
        content = []
        for token in self.visible(tokens):
            assert token.logprobs is not None
            top = [self._entry(i, logprob) for i, logprob in token.logprobs.top]
            entry = self._entry(token.id, token.logprobs.logprob)
            content.append({**entry, "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> Json:
        return {
            "token": self.worded(token_id),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(self.octets.of(token_id)),
        }


class CompletionWire(Wire):
    """`/v1/completions`."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._offsets: dict[int, int] = {}  # characters so far, by answer

    def choice(self, answer: Answer) -> Json:
        shown = [token for piece in answer.pieces for token in piece.shown]
        choice = {
            "index": answer.index,
            "text": answer.text,
            "logprobs": self._likely(answer.index, shown),
            "finish_reason": answer.finish,
        }
        return {**choice, "dspark": provenance_of(answer)} if self.tokens else choice

    def opening(self, index: int) -> None:
        return None

    def delta(self, piece: Piece) -> Json:
        likely = self._likely(piece.index, piece.shown)
        return _choice(piece.index, text=piece.text, logprobs=likely)

    def closing(self, piece: Piece) -> Json:
        return _choice(piece.index, piece.finish, text="")

    def _likely(self, index: int, tokens: Sequence[Token]) -> Json | None:
        if not self.logprobs:
            return None
        found: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        offset = self._offsets.get(index, 0)
        for token in self.visible(tokens):
            assert token.logprobs is not None
            found["tokens"].append(self.worded(token.id))
            found["token_logprobs"].append(max(token.logprobs.logprob, LEAST_LOGPROB))
            names = self._names([token.id, *(i for i, _ in token.logprobs.top)])
            top = {names[i]: max(p, LEAST_LOGPROB) for i, p in token.logprobs.top}
            found["top_logprobs"].append(top)
            found["text_offset"].append(offset)
            offset += len(token.text)
        self._offsets[index] = offset
        return found

    def worded(self, token_id: int) -> str:
        """As in chat, but what is no text of its own says so, as OpenAI's older endpoint does."""
        words = super().worded(token_id)
        return words if words.encode() == self.octets.of(token_id) else f"bytes:{words}"

    def _names(self, ids: Sequence[int]) -> dict[int, str]:
        """Keys of tokens that all differ; of those with the same text the first one has it."""
        names: dict[int, str] = {}
        for token_id in ids:
            if token_id not in names:
                words = self.worded(token_id)
                taken = words in names.values()
                names[token_id] = f"token_id:{token_id}" if taken else words
        return names


def _choice(index: int, finish: str | None = None, logprobs: Any = None, **what: Any) -> Json:
    return {"index": index, **what, "logprobs": logprobs, "finish_reason": finish}


def dspark_of(piece: Piece) -> Json:
    """How the tokens of one step came about: the tokens, and the round that made them."""
    return {
        "tokens": _tokens(piece),
        "round": None if piece.record is None else _round(piece.record),
    }


def provenance_of(answer: Answer) -> Json:
    """The same of a whole answer: all tokens, all rounds."""
    tokens = [token for piece in answer.pieces for token in _tokens(piece)]
    rounds = [_round(piece.record) for piece in answer.pieces if piece.record is not None]
    return {"tokens": tokens, "rounds": rounds}


def _tokens(piece: Piece) -> list[Json]:
    return [{"text": token.text, "kind": token.kind.value} for token in piece.made]


def _round(record: RoundRecord) -> Json:
    return {
        "drafted": record.drafted,
        "verified": record.verified,
        "accepted": record.accepted,
        "confidence": list(record.confidence),
    }
