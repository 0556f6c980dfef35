"""From load files to what is compared: lines over load, frontiers, never worse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dspark.maths.never_worse import NeverWorse, against_fixed
from dspark.reporting.load import Results
from dspark.reporting.records import Load, LoadRow
from dspark.reporting.style import kind_rank

BASELINE = "mtp"  # the kind of drafter that frontiers are compared with
Frontier = list[tuple[float, float]]  # (a user's tokens/s falling, all users' tokens/s rising)


@dataclass(frozen=True, slots=True)
class LoadLine:
    """One policy with one drafter over the levels of load of one file."""

    file: str
    drafter: str
    kind: str
    policy: str
    rows: list[LoadRow]

    @property
    def closed(self) -> list[LoadRow]:
        """Rows of the closed loop, by users."""
        return sorted((row for row in self.rows if row.users), key=lambda row: row.users)

    @property
    def speeds(self) -> Iterable[tuple[float, float]]:
        """(a user's tokens/s, all users' tokens/s) of the closed loop, by users."""
        return [(row.tokens_per_s_per_user_p50, row.tokens_per_s) for row in self.closed]


@dataclass(frozen=True, slots=True)
class Setting:
    """What lines must share to stand in one picture."""

    target: str
    dtype: str
    temperature: float
    machine: str = ""

    def __str__(self) -> str:
        where = f", {self.machine}" if self.machine else ""
        return f"{self.target}, {self.dtype}, temperature {self.temperature:g}{where}"


def load_lines(results: Results) -> dict[Setting, list[LoadLine]]:
    """Every line of every load file, in the order of drafter kinds."""
    found: dict[Setting, list[LoadLine]] = {}
    files = sorted(results.of(Load), key=lambda pair: kind_rank(_kind(pair[1])))
    for file, record in files:
        machine = results.machine(file)
        setting = Setting(record.target, record.dtype, record.temperature, machine)
        by_way: dict[tuple[str, str, str], list[LoadRow]] = {}
        for row in record.rows:
            whose = row.drafter or record.drafter, row.kind or _kind(record)
            by_way.setdefault((*whose, row.policy), []).append(row)
        found.setdefault(setting, []).extend(
            LoadLine(file, *way, rows) for way, rows in by_way.items()
        )
    return found


def _kind(record: Load) -> str:
    return record.kind or record.drafter


def load_labels(some: Sequence[LoadLine]) -> list[str]:
    """Drafter and policy of each line, with its file where that is not enough."""
    names = ["off" if line.policy == "off" else f"{line.drafter} {line.policy}" for line in some]
    return [
        f"{name}, {line.file}" if names.count(name) > 1 else name
        for name, line in zip(names, some, strict=True)
    ]


# ---- never worse --------------------------------------------------------------------------------


def never_worse(record: Load) -> list[tuple[str, str, NeverWorse]]:
    """(level, adaptive policy, comparison with its drafter's best fixed choice) of one file."""
    levels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in record.rows:
        if row.drafter not in (None, record.drafter):
            continue
        turns = [(float(part.tokens), part.seconds) for part in row.slices]
        levels.setdefault(row.level, {})[row.policy] = turns
    return [
        (level, policy, found)
        for level, lanes in levels.items()
        for policy, found in against_fixed(lanes).items()
    ]


# ---- frontiers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Match:
    """A line met with the baseline's frontier at one of the frontier's points.

    Attributes:
        speed, throughput: the baseline's, of a user and of all users, in tokens/s.
        speed_ratio: the line's per-user speed over the baseline's at that throughput; nan where
            the line does not reach it or never falls to it.
        throughput_ratio: likewise all users' throughput at that per-user speed.
    """

    speed: float
    throughput: float
    speed_ratio: float
    throughput_ratio: float


def frontier(points: Iterable[tuple[float, float]]) -> Frontier:
    """The upper envelope: points that no other beats in per-user speed and throughput at once.

    Args:
        points: (per-user speed, throughput); those with nan are left out.
    """
    kept: Frontier = []
    for speed, throughput in sorted(points, reverse=True):
        known = not math.isnan(speed + throughput)
        if known and (not kept or throughput > kept[-1][1]):
            kept.append((speed, throughput))
    return kept


def matches(line: Frontier, baseline: Frontier) -> list[Match]:
    """The line against every point of the baseline, between points by linear interpolation."""
    if not line:
        return []
    speeds, throughputs = (np.array(values) for values in zip(*line, strict=True))
    found = []
    for speed, throughput in baseline:
        # np.interp wants its first argument's grid to rise; throughput does, speed falls.
        own_speed = np.interp(throughput, throughputs, speeds, left=np.nan, right=np.nan)
        own_throughput = np.interp(
            speed, speeds[::-1], throughputs[::-1], left=np.nan, right=np.nan
        )
        ratios = float(own_speed / speed), float(own_throughput / throughput)
        found.append(Match(speed, throughput, *ratios))
    return found


def against_baseline(some: Sequence[LoadLine]) -> list[tuple[str, list[Match]]]:
    """Every line with another drafter against the baseline's best, by label.

    The baseline is given the best of all its drafting policies; the others stand alone, so no
    policy is picked after the fact in their favour.
    """
    drafted = [line for line in some if line.policy != "off"]
    points = [point for line in drafted if line.kind == BASELINE for point in line.speeds]
    baseline = frontier(points)
    others = [line for line in drafted if line.kind != BASELINE]
    if not baseline:
        return []
    found = zip(load_labels(others), others, strict=True)
    return [(label, matches(frontier(line.speeds), baseline)) for label, line in found]
