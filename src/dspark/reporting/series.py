"""From evaluation files to what is compared: lines of a table, points of a curve.

Suffixes: B resamples, K slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dspark.maths.bootstrap import interval, ratio
from dspark.maths.summary import slot_counts
from dspark.reporting.load import Results
from dspark.reporting.records import UNKNOWN, Eval, EvalRow, Gain, Macro, Shape, Training
from dspark.reporting.style import kind_rank

DOMAINS = ("math", "code", "chat")
# A share of fewer rounds says nothing; drawn, it would hide what the others say.
MIN_ROUNDS = 20
Point = tuple[float, float, tuple[float, float]]  # x, y, 95 % interval of y


@dataclass(frozen=True, slots=True)
class Line:
    """One drafter at one temperature under one policy: its datasets' rows in one file."""

    file: str
    study: str | None
    drafter: str
    policy: str
    temperature: float
    rows: list[EvalRow]
    macro: Macro | None

    @property
    def kind(self) -> str:
        return self.rows[0].kind

    @property
    def shape(self) -> Shape:
        return self.rows[0].shape

    @property
    def training(self) -> Training | None:
        return self.rows[0].training

    @property
    def threshold(self) -> float | None:
        """The confidence threshold, if that is what decides how much is verified."""
        name, _, value = self.policy.partition(":")
        try:
            return float(value) if name == "threshold" else None
        except ValueError:
            return None

    @property
    def by_domain(self) -> dict[str, float]:
        """accepted_length by domain; without a macro record the mean over its datasets."""
        if self.macro is not None:
            return self.macro.by_domain
        return {
            domain: mean(row.accepted_length for row in self.rows if row.domain == domain)
            for domain in domains([self])
        }

    @property
    def accepted_length(self) -> float:
        """Mean over domains."""
        return mean(self.by_domain.values()) if self.macro is None else self.macro.accepted_length

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `accepted_length`; nan without a macro record."""
        return UNKNOWN if self.macro is None else self.macro.accepted_length_ci

    @property
    def gains(self) -> dict[str, Gain]:
        """Relative gains over other drafters of the same file."""
        return {} if self.macro is None else self.macro.gains

    @property
    def built(self) -> str:
        """Kind and sequential head."""
        head = self.shape.markov_head_type
        return f"{self.kind}, {head} head" if head else self.kind


def mean(values: Iterable[float]) -> float:
    """Mean of the numbers that are known; nan if none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def lines(results: Results) -> list[Line]:
    """Every line of every evaluation file, in the order of drafter kinds."""
    found = []
    for file, record in results.of(Eval):
        groups: dict[tuple[str, float, str], list[EvalRow]] = {}
        for row in record.rows:
            groups.setdefault((row.drafter, row.temperature, row.policy), []).append(row)
        macros = {(m.drafter, m.temperature, m.policy): m for m in record.macro}
        for (drafter, temperature, policy), rows in groups.items():
            macro = macros.get((drafter, temperature, policy))
            line = Line(file, record.study, drafter, policy, temperature, rows, macro)
            found.append(line)
    return sorted(found, key=lambda line: kind_rank(line.kind))


def of_study(every: Sequence[Line], study: str | None) -> list[Line]:
    """Lines of one study (None: the main comparison) with a verify length that does not adapt."""
    return [line for line in every if line.study == study and line.threshold is None]


def at_temperature(some: Sequence[Line], wanted: float | None) -> list[Line]:
    """Lines at the wanted temperature; unset takes 1, the paper's, or else the highest there is."""
    there = temperatures(some)
    if wanted is None and there:
        wanted = 1.0 if 1.0 in there else there[-1]
    return [line for line in some if line.temperature == wanted]


def temperatures(some: Iterable[Line]) -> list[float]:
    """Temperatures that were measured, rising."""
    return sorted({line.temperature for line in some})


def labels(some: Sequence[Line]) -> list[str]:
    """A name for each line: its drafter, with policy and file where that is not enough."""
    names = [line.drafter for line in some]
    for more in (lambda line: line.policy, lambda line: line.file):
        if len(set(names)) < len(names):
            names = [f"{name}, {more(line)}" for name, line in zip(names, some, strict=True)]
    return names


def domains(some: Iterable[Line]) -> list[str]:
    """Domains of these lines: math, code, chat, then others as they come."""
    found = dict.fromkeys(row.domain for line in some for row in line.rows)
    return sorted(found, key=lambda d: DOMAINS.index(d) if d in DOMAINS else len(DOMAINS))


def datasets(some: Sequence[Line]) -> dict[str, list[str]]:
    """Datasets by domain."""
    rows = [row for line in some for row in line.rows]
    return {
        domain: list(dict.fromkeys(row.dataset for row in rows if row.domain == domain))
        for domain in domains(some)
    }


def acceptance_by_position(rows: Sequence[EvalRow]) -> list[Point]:
    """Conditional acceptance of each slot, over the rounds of all these rows together.

    Returns:
        (slot from 1, acceptance, 95 % interval) by slot, as far as `MIN_ROUNDS` rounds reached;
        empty without rows.
    """
    if not rows:
        return []
    counts = [slot_counts(row.model_dump(include={"dataset", "per_prompt"})) for row in rows]
    accepted_K, reached_K = np.sum([values for values, _ in counts], axis=0)
    accepted_BK, reached_BK = np.sum([resampled for _, resampled in counts], axis=0)
    values_K, values_KB = ratio(accepted_K, reached_K), ratio(accepted_BK, reached_BK).T
    return [
        (k, float(y), interval(y_B) or UNKNOWN)
        for k, (y, y_B, rounds) in enumerate(zip(values_K, values_KB, reached_K, strict=True), 1)
        if rounds >= MIN_ROUNDS
    ]


def acceptance_rate(rows: Sequence[EvalRow]) -> float:
    """Share of verified draft tokens that were accepted; nan if none was verified."""
    verified = sum(row.verified_tokens for row in rows)
    return 1 - sum(row.wasted_tokens for row in rows) / verified if verified else math.nan


def by_x(
    some: Iterable[Line], x: Callable[[Line], float | None]
) -> dict[tuple[str, str], list[Point]]:
    """accepted_length over `x`, one curve for each (kind, kind with its head); unknown x drop."""
    curves: dict[tuple[str, str], list[Point]] = {}
    for line in some:
        if (at := x(line)) is not None:
            point = (at, line.accepted_length, line.interval)
            curves.setdefault((line.kind, line.built), []).append(point)
    return {key: sorted(points) for key, points in curves.items()}
