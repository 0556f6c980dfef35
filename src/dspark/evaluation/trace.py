"""Round records on disk: what every round of an evaluation drafted, verified and accepted.

JSON lines: a header with schema dspark.trace/1, then one record a round. Records of a cell are
appended when it is finished. Prompts appear by id alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dspark.artifacts import append_jsonl, atomic_write_text, read_jsonl
from dspark.core import Request
from dspark.errors import ConfigError, DataError

SCHEMA = "dspark.trace/1"
DIGITS = 6

Key = tuple[Any, ...]  # values of KEY_FIELDS
KEY_FIELDS = ("drafter", "dataset", "temperature", "policy")


def key_of(record: Mapping[str, Any]) -> Key:
    """The cell that a row or a record belongs to.

    Raises:
        KeyError: it has no such fields.
    """
    return tuple(record[field] for field in KEY_FIELDS)


class TraceFile:
    """A trace that an evaluation adds to, one cell at a time.

    Args:
        path: file, not compressed; kept if it is there.
        provenance: for the header of a new file.

    Raises:
        ConfigError: the file's name ends in .gz, which cannot be appended to safely.
        DataError: the file is there and is no trace.
    """

    def __init__(self, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        self.path, self.provenance = Path(path), dict(provenance or {})
        if self.path.suffix == ".gz":
            raise ConfigError(
                "A trace cannot be appended to a compressed file",
                found=self.path,
                fix="Leave .gz off; compress the finished file",
            )
        self._read()

    def begin(self, header: Mapping[str, Any], rounds: Mapping[Key, int]) -> set[Key]:
        """Keep the records of finished cells and drop all others.

        Args:
            header: what all records share, of values that survive JSON unchanged. A file with
                another header is begun anew.
            rounds: finished cells with the number of their rounds.

        Returns:
            Those of them whose records are all in the file.
        """
        old, found = self._read()
        provenance = old.pop("provenance", self.provenance)
        header = {"schema": SCHEMA, **header}
        kept = [r for r in found if key_of(r) in rounds] if old == header else []
        counts = Counter(map(key_of, kept))
        whole = {key for key, count in rounds.items() if counts[key] == count}
        lines = [{**header, "provenance": provenance if whole else self.provenance}]
        lines += [record for record in kept if key_of(record) in whole]
        atomic_write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        return whole

    def append(self, key: Key, prompt_ids: Sequence[str], requests: Sequence[Request]) -> None:
        """Add the rounds of a finished cell; all of them are on disk when this returns."""
        append_jsonl(self.path, records(key, prompt_ids, requests))

    def _read(self) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
        """Header and records of the file; both empty when there is none."""
        if not self.path.exists():
            return {}, iter(())
        rows = read_jsonl(self.path)
        header = next(rows, {})
        if header.get("schema") != SCHEMA:
            raise DataError(
                f"{self.path} is there and is no trace",
                found=header.get("schema", "no schema"),
                fix="Name another file, or remove this one",
            )
        return header, rows


def records(
    key: Key, prompt_ids: Sequence[str], requests: Sequence[Request]
) -> Iterator[dict[str, Any]]:
    """One dictionary a round, in the order of the prompts; rounds count from 0."""
    drafter, dataset, temperature, policy = key
    for prompt_id, request in zip(prompt_ids, requests, strict=True):
        for number, record in enumerate(request.rounds):
            yield {
                "drafter": drafter,
                "dataset": dataset,
                "prompt": prompt_id,
                "temperature": temperature,
                "policy": policy,
                "round": number,
                "verified": record.verified,
                "accepted": record.accepted,
                "committed": record.committed,
                "stopped": record.stopped,
                "confidence": [round(sure, DIGITS) for sure in record.confidence],
            }
