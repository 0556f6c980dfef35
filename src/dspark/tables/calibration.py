"""The calibration table: temperatures that make a drafter's confidences probabilities.

It lies in the drafter's folder, belongs to that drafter's weights, and has one entry for each way
of sampling: acceptance at temperature 0 and at 1 are different events (DSpark §3.2.1).

Suffixes: R requests, K block slots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark.artifacts import read_artifact, write_artifact
from dspark.artifacts.values import number, whole_number
from dspark.core import DEFAULT_RULE, RULES, TOKEN
from dspark.errors import ConfigError, DataError, IncompatibleDrafterError

SCHEMA = "dspark.calibration/1"
FILE = "calibration.json"
_CLIP = 1e-7  # the head's sigmoid may round to 0 or 1, whose logits are not finite

Key = tuple[float, float, int]


def confidence_logits(confidence: ArrayLike) -> NDArray[np.float64]:
    """The head's logits z from c = σ(z), within ±16.1."""
    c = np.asarray(confidence, dtype=np.float64).clip(_CLIP, 1 - _CLIP)
    return np.log(c) - np.log1p(-c)


@dataclass(frozen=True, slots=True)
class CalibrationEntry:
    """Calibration for one way of sampling.

    Attributes:
        temperature, top_p, top_k: the way; at temperature 0 the filters do not matter.
        temperatures: T_1 … T_γ, positive.
        mean_survival: mean calibrated survival of slots 1 … γ, for a request without history.
        rounds, prompts: what it was fitted on.
        max_new_tokens: length limit of the completions it was fitted on.
        metrics: how it did on rounds kept out of fitting; for people.
        confidence: SHA-256 of the informed confidence head it was fitted with, "" for the
            linear head, which also gives that of greedy drafts.
        verification: the rule of `core.RULES` that its drafts were accepted by; "" at temperature
            0, where all rules are one.
    """

    temperature: float
    top_p: float
    top_k: int
    temperatures: tuple[float, ...]
    mean_survival: tuple[float, ...]
    rounds: int = 0
    prompts: int = 0
    max_new_tokens: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    confidence: str = ""
    verification: str = DEFAULT_RULE

    def __post_init__(self) -> None:
        if not self.temperature:
            object.__setattr__(self, "verification", "")

    @property
    def key(self) -> Key:
        """The way of sampling."""
        return _key(self.temperature, self.top_p, self.top_k)

    @property
    def name(self) -> tuple[Key, str]:
        """What entries of a table are told apart by."""
        return self.key, self.verification

    def calibrated(self, confidence_RK: ArrayLike) -> NDArray[np.float64]:
        """Calibrated c_k = σ(z_k / T_k), the same shape; K may be less than γ."""
        logits_RK = confidence_logits(confidence_RK)
        scale_K = np.array(self.temperatures[: logits_RK.shape[-1]])
        return 1 / (1 + np.exp(-logits_RK / scale_K))

    def survival(self, confidence_RK: ArrayLike) -> NDArray[np.float64]:
        """Calibrated a_k = Π_{i≤k} c_i, the probability that draft tokens 1 … k all pass."""
        return np.cumprod(self.calibrated(confidence_RK), axis=-1, dtype=np.float64)

    def survival_of(self, confidence_K: Sequence[float]) -> list[float]:
        """`survival` of one request in plain numbers, up to rounding.

        The scheduler runs between two forwards, which leave no cache warm: there array calls
        take 0.15 ms for the few numbers of one user.
        """
        survival, survival_K = 1.0, []
        for confidence, scale in zip(confidence_K, self.temperatures, strict=False):
            c = min(max(confidence, _CLIP), 1 - _CLIP)
            z = (math.log(c) - math.log1p(-c)) / scale
            survival /= 1 + math.exp(min(-z, 700.0))  # more would overflow
            survival_K.append(survival)
        return survival_K


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """All entries of one drafter.

    Attributes:
        sha256: of the drafter's weights file, in hexadecimal.
        kind: the drafter's, such as "dspark".
        block_size: γ.
        target: name of the target the rounds were made with.
        entries: with distinct names.
    """

    sha256: str
    kind: str
    block_size: int
    target: str
    entries: tuple[CalibrationEntry, ...] = ()

    @classmethod
    def load(cls, path: str | Path, *, sha256: str, confidence: str = "") -> CalibrationTable:
        """Read a table.

        Args:
            sha256: of the weights of the drafter it is to be used with.
            confidence: of its informed confidence head, "" without one.

        Raises:
            DataError: the file is missing or damaged.
            IncompatibleDrafterError: it was made for other weights, or another head.
        """
        content = read_artifact(path, SCHEMA)
        try:
            table = _parse(content)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is damaged",
                found=f"no {error}" if isinstance(error, KeyError) else error,
                fix="Remove it and run `dspark calibrate` again",
            ) from error
        if table.sha256 != sha256:
            raise IncompatibleDrafterError(
                f"The calibration table {path} was made for another drafter",
                found=f"table {table.sha256[:12]}, drafter {sha256[:12]}",
                fix="Remove it and run `dspark calibrate` for this drafter",
            )
        for entry in table.entries:
            if entry.temperature and entry.confidence != confidence:
                heads = [sha[:12] or "the linear one" for sha in (entry.confidence, confidence)]
                raise IncompatibleDrafterError(
                    f"{path} was made with another confidence head ({_worded(entry.key)})",
                    found=f"table {heads[0]}, drafter {heads[1]}",
                    fix="Remove it and run `dspark calibrate` for this drafter",
                )
        return table

    def save(self, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write the table, whole or not at all.

        Raises:
            DataError: the file cannot be written.
        """
        drafter = {"sha256": self.sha256, "kind": self.kind, "block_size": self.block_size}
        entries = [asdict(entry) for entry in self.entries]
        content = {"drafter": drafter, "target": self.target, "entries": entries}
        write_artifact(path, SCHEMA, content, provenance)

    def entry(
        self,
        temperature: float,
        top_p: float = 1.0,
        top_k: int = 0,
        verification: str = DEFAULT_RULE,
    ) -> CalibrationEntry:
        """The entry for one way of sampling under one rule.

        Raises:
            ConfigError: there is none; the message names those there are.
        """
        key = _key(temperature, top_p, top_k)
        name = (key, verification if temperature else "")
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise ConfigError(
            f"The drafter is not calibrated for {_named(*name)}",
            found="; ".join(_named(*entry.name) for entry in self.entries) or "no entry",
            fix="Run `dspark calibrate` with these options",
        )

    def nearest(self, key: Key) -> CalibrationEntry | None:
        """The entry for a way of sampling, or the nearest in temperature; None without entries.

        Where an informed head gives the confidence above temperature 0, entries that it made come
        first.
        """
        two_heads = any(entry.confidence for entry in self.entries)

        def distance(entry: CalibrationEntry) -> tuple[bool, bool, float]:
            another_head = two_heads and bool(entry.temperature) != bool(key[0])
            return entry.key != key, another_head, abs(entry.temperature - key[0])

        return min(self.entries, key=distance, default=None)

    def under(self, rule: str) -> tuple[CalibrationTable, list[CalibrationEntry]]:
        """This table as it serves under a rule: one entry for each way of sampling.

        Returns:
            The table, and those of its entries that were fitted under another rule and are used
            here.
        """
        own = [entry for entry in self.entries if entry.verification in ("", rule)]
        known = {entry.key for entry in own}
        others = [entry for entry in self.entries if entry.key not in known]
        return replace(self, entries=tuple(sorted([*own, *others], key=lambda e: e.key))), others

    def with_entry(self, entry: CalibrationEntry) -> CalibrationTable:
        """This table with an entry added, or put in the place of the one with the same name."""
        assert len(entry.temperatures) == len(entry.mean_survival) == self.block_size
        others = [old for old in self.entries if old.name != entry.name]
        return replace(self, entries=tuple(sorted([*others, entry], key=lambda e: e.name)))

    def greedy_only(self) -> CalibrationTable:
        """This table without the entries that depend on an informed confidence head."""
        return replace(self, entries=tuple(e for e in self.entries if not e.temperature))


def _key(temperature: float, top_p: float, top_k: int) -> Key:
    return (temperature, top_p, top_k) if temperature else (0.0, 1.0, 0)


def _worded(key: Key) -> str:
    temperature, top_p, top_k = key
    return f"temperature {temperature:g}, top_p {top_p:g}, top_k {top_k}"


def _named(key: Key, verification: str) -> str:
    return _worded(key) + (f", verification {verification}" if verification else "")


def _parse(content: dict[str, Any]) -> CalibrationTable:
    """A table from a file's content; KeyError, TypeError or ValueError where it is damaged."""
    drafter = content["drafter"]
    size = whole_number(drafter["block_size"], "block_size", least=1)
    if not isinstance(drafter["sha256"], str):
        raise ValueError(f"sha256 is {drafter['sha256']!r}, no text")
    entries = tuple(_parse_entry(row, size) for row in content["entries"])
    if len({entry.name for entry in entries}) < len(entries):
        raise ValueError("two entries are for the same way of sampling and the same verification")
    return CalibrationTable(
        drafter["sha256"], str(drafter["kind"]), size, str(content["target"]), entries
    )


def _parse_entry(row: dict[str, Any], size: int) -> CalibrationEntry:
    whole = {name: whole_number(row[name], name) for name in ("rounds", "prompts")}
    entry = CalibrationEntry(
        number(row["temperature"], "temperature"),
        number(row["top_p"], "top_p", above=True, most=1.0),
        whole_number(row["top_k"], "top_k"),
        tuple(number(t, "a slot's temperature", above=True) for t in row["temperatures"]),
        tuple(number(a, "a mean survival", most=1.0) for a in row["mean_survival"]),
        **whole,
        max_new_tokens=whole_number(row["max_new_tokens"], "max_new_tokens"),
        metrics=dict(row["metrics"]),
        confidence=str(row.get("confidence", "")),
        verification=str(row.get("verification", TOKEN)),
    )
    if entry.temperature and entry.verification not in RULES:
        raise ValueError(f"there is no verification {entry.verification!r}")
    if len(entry.temperatures) != size or len(entry.mean_survival) != size:
        lengths = f"{len(entry.temperatures)} temperatures, {len(entry.mean_survival)} survivals"
        raise ValueError(f"{lengths} for a block of {size}")
    return entry
