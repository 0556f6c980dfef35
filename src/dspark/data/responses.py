"""Responses: completions by the target, with token ids, as training data.

One JSON object a line; files may be gzip-compressed. `ResponseRow` is the full row as it lies in
a file, `Response` the part that training keeps in memory.

    id, domain            text; several rows may share an id (several samples of one prompt)
    temperature, top_p    how it was sampled; top_p may be absent when it was not recorded
    prompt_ids            the prompt after the chat template, token ids
    response_ids          the completion, token ids, the stop token included when there is one
    finished              true when the completion ended by itself, false at a length limit
    source, license, prompt, response   text, may be absent
    turn                  which completion of its conversation it is, from 0; absent outside of one

Further fields are allowed and survive reading and writing.

Suffix: N samples of a set.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dspark.data.bad_rows import BadRows
from dspark.data.files import find_data, place, read_jsonl
from dspark.data.turns import Conversations
from dspark.errors import ConfigError, DataError

# Why a response is not learned from, or not all of it.
NO_ROOM = "the prompt alone fills the longest length"
CUT = "cut at the longest length, but kept"
_TEXTS = ("source", "license", "prompt", "response")
_KNOWN = frozenset(
    {"id", "domain", "temperature", "top_p", "prompt_ids", "response_ids", "finished", "turn"}
    | set(_TEXTS)
)


@dataclass(slots=True)
class ResponseRow:
    """One completion as it lies in a file; the module's text explains the fields.

    Attributes:
        prompt_ids: int32 [prompt tokens].
        response_ids: int32 [response tokens].
        extra: fields this version does not know, kept as they were.
    """

    id: str
    domain: str
    prompt_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]
    temperature: float
    finished: bool
    top_p: float | None = None
    source: str = ""
    license: str = ""
    prompt: str = ""
    response: str = ""
    turn: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, row: dict[str, Any], where: str = "the row") -> ResponseRow:
        """Check one JSON object; `where` names it in messages.

        Raises:
            DataError: a field is missing, empty, of the wrong type or out of range.
        """
        name = _required(row, "id", where)
        domain = _required(row, "domain", where)
        finished = _required(row, "finished", where)
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: id must be a text, not empty", found=repr(name))
        if not isinstance(domain, str):
            raise DataError(f"{where}: domain must be a text", found=repr(domain))
        if not isinstance(finished, bool):
            raise DataError(f"{where}: finished must be true or false", found=repr(finished))
        top_p, turn = row.get("top_p"), row.get("turn")
        if turn is not None and (type(turn) is not int or turn < 0):
            raise DataError(f"{where}: turn must be a whole number from 0", found=repr(turn))
        texts = {}
        for key in _TEXTS:
            value = row.get(key)
            if value is not None and not isinstance(value, str):
                raise DataError(f"{where}: {key} must be a text", found=type(value).__name__)
            texts[key] = value or ""
        return cls(
            id=name,
            domain=domain,
            prompt_ids=_token_ids(row, "prompt_ids", where),
            response_ids=_token_ids(row, "response_ids", where),
            temperature=_number(_required(row, "temperature", where), 100, f"{where}: temperature"),
            finished=finished,
            top_p=None if top_p is None else _number(top_p, 1, f"{where}: top_p"),
            turn=turn,
            extra={key: value for key, value in row.items() if key not in _KNOWN},
            **texts,
        )

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values; `top_p` is left out when it is unknown."""
        row: dict[str, Any] = {"id": self.id, "domain": self.domain}
        row |= {"source": self.source, "license": self.license, "temperature": self.temperature}
        if self.top_p is not None:
            row["top_p"] = self.top_p
        row |= {"prompt": self.prompt, "response": self.response}
        row |= {"prompt_ids": self.prompt_ids.tolist(), "response_ids": self.response_ids.tolist()}
        row["finished"] = self.finished
        if self.turn is not None:
            row["turn"] = self.turn
        return row | self.extra


@dataclass(frozen=True, slots=True, eq=False)  # eq on arrays would not give a truth value
class Response:
    """One completion in memory: 4 bytes a token and no text.

    Attributes:
        id: id of the prompt; not unique.
        prompt_ids: int32 [prompt tokens].
        response_ids: int32 [response tokens], at least one.
        temperature: what it was sampled with.
        finished: it ended by itself and was not cut afterwards.
        sample: which of the completions to this prompt it is, from 0 in reading order.
        context: [start, end) of what in `response_ids` is no completion, in order: of a
            conversation that holds several completions, what lies between them.
    """

    id: str
    domain: str
    prompt_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]
    temperature: float
    finished: bool
    sample: int = 0
    context: tuple[tuple[int, int], ...] = ()

    @property
    def completion_mask(self) -> NDArray[np.bool_]:
        """Which tokens of `response_ids` the target wrote, bool [response tokens]."""
        completion_mask = np.ones(len(self.response_ids), dtype=bool)
        for start, end in self.context:
            completion_mask[start:end] = False
        return completion_mask

    @property
    def key(self) -> str:
        """Unique name of this completion within what one `load_responses` call returned."""
        return f"{self.id}#{self.sample}"

    def __len__(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)


def load_responses(
    sources: Sequence[str | Path],
    max_length: int | None = None,
    *,
    join_turns: bool = False,
    bad_rows: BadRows | None = None,
    dropped: Counter[str] | None = None,
) -> list[Response]:
    """Read the responses of several files, in the order given.

    Args:
        sources: paths or names under the data folder, `.jsonl` or `.jsonl.gz`.
        max_length: longest prompt plus response, in tokens; None for no limit. A longer response
            is cut and no longer counts as finished; one whose prompt leaves no room for a single
            response token is dropped.
        join_turns: make one response of the completions of a conversation
            (:mod:`dspark.data.turns`).
        bad_rows: what to do with rows that are no responses; None stops at the first.
        dropped: receives the number of responses that are dropped, by reason; and of those cut.

    Raises:
        DataError: a file is missing, damaged or given twice, a row is not a response, or nothing
            fits into `max_length`.
        ConfigError: no source, or `max_length` below 2.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    if not sources:
        raise ConfigError("no response file was given", fix="Name at least one")
    if max_length is not None and max_length < 2:
        raise ConfigError("max_length is out of range", found=max_length, fix="Use 2 or more")
    responses: list[Response] = []
    conversations, seen = Conversations(responses), Counter[str]()
    bad_rows, dropped = bad_rows or BadRows(), Counter() if dropped is None else dropped
    for path in _different_files(sources):
        for line, row in read_jsonl(path, bad_rows):
            try:
                full = ResponseRow.from_json(row, place(path, line))
            except DataError as error:
                bad_rows.meet(error, place(path, line))
                continue
            sample = seen[full.id]
            seen[full.id] += 1  # counted even if skipped, so keys do not depend on max_length
            fitted = _fit(full, sample, max_length)
            if fitted is None:
                dropped[NO_ROOM] += 1
                continue
            dropped[CUT] += len(fitted) < len(full.prompt_ids) + len(full.response_ids)
            conversations.add(fitted, full.turn or 0 if join_turns else 0)
    if not responses and not seen:
        raise DataError("no row is a response", found=bad_rows.summary())
    if not responses:
        raise DataError(
            "no response is left: every prompt fills max_length by itself",
            found=f"max_length {max_length}, {seen.total()} responses",
            fix="Raise max_length",
        )
    return responses


def split_held_out(
    responses: Iterable[Response], share: float, seed: int
) -> tuple[list[Response], list[Response]]:
    """Split into (train, held out) by prompt.

    Where a prompt goes depends on its id and the seed alone: all its samples go together, and
    adding or reordering files moves nothing across. The held-out share of the prompts is
    therefore `share` on average, and with few prompts may be none.

    Raises:
        ConfigError: `share` is outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError("held-out share is out of range", found=share, fix="Use 0 to below 1")
    train: list[Response] = []
    held_out: list[Response] = []
    for response in responses:
        (held_out if _position(response.id, seed) < share else train).append(response)
    return train, held_out


def check_vocabulary(responses: Iterable[Response], vocab_size: int) -> None:
    """Refuse completions with tokens that a target does not have.

    Raises:
        DataError: naming the highest of them.
    """
    highest = max(int(max(r.prompt_ids.max(), r.response_ids.max())) for r in responses)
    if highest >= vocab_size:
        raise DataError(
            "The completions belong to another target",
            found=f"token {highest}, vocabulary {vocab_size}",
            fix="Make completions with this target: `dspark regenerate`",
        )


def _fit(full: ResponseRow, sample: int, max_length: int | None) -> Response | None:
    """The row cut to `max_length` tokens, or None when its prompt leaves no room."""
    ids, finished = full.response_ids, full.finished
    if max_length is not None:
        room = max_length - len(full.prompt_ids)
        if room < 1:
            return None
        if room < len(ids):
            ids, finished = ids[:room].copy(), False  # a view would keep the whole row alive
    return Response(full.id, full.domain, full.prompt_ids, ids, full.temperature, finished, sample)


def _different_files(sources: Sequence[str | Path]) -> list[Path]:
    paths = [find_data(source) for source in sources]
    real = [path.resolve() for path in paths]
    for index, path in enumerate(paths):
        if real[index] in real[:index]:
            raise DataError(f"response file {path} was given twice", fix="Name each file once")
    return paths


def _position(name: str, seed: int) -> float:
    """A number in [0, 1) that is the same on every machine (Python's own hash is not)."""
    text = f"{seed}:{name}".encode(errors="surrogatepass")
    # 53 bits are what a float holds exactly; more could round up to 1.
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11) / 2**53


def _required(row: dict[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise DataError(
            f"{where} has no field {key!r}",
            found=f"fields {', '.join(row) or 'none'}",
            fix="A response row needs id, domain, temperature, prompt_ids, response_ids, finished",
        )
    return row[key]


def _number(value: object, most: float, where: str) -> float:
    # A comparison with NaN is false, and one with a huge whole number does not overflow.
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most
    if not fine:
        raise DataError(f"{where} must be a number from 0 to {most:g}", found=repr(value)[:40])
    return float(cast(float, value))


def _token_ids(row: dict[str, Any], key: str, where: str) -> NDArray[np.int32]:
    value = _required(row, key, where)
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: {key} must be a list of token ids, not empty",
            found="[]" if value == [] else type(value).__name__,
        )
    # Checked on the list: numpy would take true for 1 and refuse nothing that is ragged by type.
    if not all(type(token) is int and 0 <= token < 2**31 for token in value):
        wrong = next(t for t in value if type(t) is not int or not 0 <= t < 2**31)
        raise DataError(f"{where}: {key} holds something that is no token id", found=repr(wrong))
    return np.array(value, dtype=np.int32)
