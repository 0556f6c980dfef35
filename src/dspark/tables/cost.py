"""The cost table: what a round costs on this machine, by measurement (DSpark §3.2.2, §5.2).

Seconds of the target's forward by batch tokens and requests, and of drafting by requests and slots.
Made by `dspark profile` or by the policy `auto`, used by the adaptive policies. No torch.

Suffix: B batch tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark.artifacts import read_artifact, write_artifact
from dspark.artifacts.values import number, whole_number
from dspark.errors import DataError, IncompatibleDrafterError

SCHEMA = "dspark.cost/1"

Floats = NDArray[np.float64]
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class CostKey:
    """What a cost table belongs to; times of anything else are not comparable.

    Attributes:
        machine: processor or accelerator.
        threads: processor threads.
        target: its name.
        dtype: of weights and arithmetic.
        drafter: sha256 of the drafter's weights, or "" for one that lies in no file.
        kernels: name of the kernels that did the work; "" in files that do not say.
    """

    machine: str
    threads: int
    target: str
    dtype: str
    drafter: str
    kernels: str = ""


@dataclass(frozen=True, slots=True)
class CostTable:
    """Measured times of a round's two parts.

    Attributes:
        key: what was measured.
        verify: (batch tokens, seconds), rising in both.
        draft: (requests, seconds) of whole blocks, rising in both; empty without a drafter.
        context: cache positions of each request while measuring.
        block: slots of a whole block; 0 where `short` is empty.
        short: (slots, points as in `draft`) of shorter blocks, rising in slots; empty in tables
            of before they were measured, where any draft counts as a whole block.
        of_requests: (requests, points as in `verify`) of batches of so many requests, rising in
            requests: each brings a context of its own to read, so 32 rows of 32 requests cost more
            than of 4. Empty in tables of before, where batch tokens alone count.
    """

    key: CostKey
    verify: Points
    draft: Points
    context: int
    block: int = 0
    short: tuple[tuple[int, Points], ...] = ()
    of_requests: tuple[tuple[int, Points], ...] = ()

    @property
    def most_requests(self) -> int:
        """Requests beyond which their number makes no difference to `verify_s`."""
        return self.of_requests[-1][0] if self.of_requests else 1

    def verify_s(self, tokens: int, requests: int | None = None) -> Floats:
        """Seconds of the target's forward with 0, 1, … `tokens` batch tokens, [tokens + 1].

        Args:
            requests: whose tokens they are, each with one at least; None where it is not known.
                Straight between the numbers that were measured.
        """
        if requests is None or not self.of_requests:
            return _between(self.verify, tokens)
        sizes = [size for size, _ in self.of_requests]
        requests = min(max(requests, sizes[0]), sizes[-1])
        above = next(i for i, size in enumerate(sizes) if size >= requests)
        below = above if sizes[above] == requests else above - 1
        share = (requests - sizes[below]) / max(sizes[above] - sizes[below], 1)
        low, high = (self._along(self.of_requests[i][1], tokens) for i in (below, above))
        found = low + share * (high - low)
        found[:requests] = found[min(requests, tokens)]  # there are no fewer rows than requests
        return np.maximum.accumulate(found)

    def _along(self, points: Points, tokens: int) -> Floats:
        """Times at 0 … tokens: between the points straight, beyond them as all batches together."""
        first, last = points[0][0], points[-1][0]
        pooled = _between(self.verify, max(tokens, last))
        at = np.arange(len(pooled))
        found = np.interp(at, *np.array(points).T)
        found[:first] += pooled[:first] - pooled[first]
        found[last:] += pooled[last:] - pooled[last]
        return np.maximum(found, self.verify[0][1])[: tokens + 1]

    def draft_s(self, requests: int, slots: int | None = None) -> float:
        """Seconds of drafting so many slots (default: a whole block) for so many requests.

        0 without requests; straight between the slots that were measured, and never less for
        more of them.
        """
        if not requests or not self.draft:
            return 0.0
        whole = float(_between(self.draft, requests)[requests])
        if slots is None or not self.short:
            return whole
        sizes = [*(size for size, _ in self.short), self.block]
        times = [float(_between(points, requests)[requests]) for _, points in self.short]
        return float(np.interp(slots, sizes, np.maximum.accumulate([*times, whole])))

    def joined(self, other: CostTable) -> CostTable:
        """This table with the points of another of the same key that it lacks."""
        others, of_requests = dict(other.short), dict(other.of_requests) | dict(self.of_requests)
        return replace(
            self,
            verify=_joined(self.verify, other.verify),
            draft=_joined(self.draft, other.draft),
            short=tuple((n, _joined(points, others.get(n, ()))) for n, points in self.short),
            of_requests=tuple(sorted(of_requests.items())),
        )

    def save(self, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write the table, whole or not at all.

        Raises:
            DataError: the file cannot be written.
        """
        content = {
            "key": asdict(self.key),
            "verify": [list(point) for point in self.verify],
            "draft": [list(point) for point in self.draft],
            "context": self.context,
            "block": self.block,
            "short": [[slots, [list(point) for point in points]] for slots, points in self.short],
            "of_requests": [
                [n, [list(point) for point in points]] for n, points in self.of_requests
            ],
        }
        write_artifact(path, SCHEMA, content, provenance)

    @classmethod
    def load(cls, path: str | Path, key: CostKey | None = None) -> CostTable:
        """Read a table.

        Args:
            key: what it is to be used for; None takes any.

        Raises:
            DataError: the file is missing or damaged.
            IncompatibleDrafterError: it was measured on another machine or for other models.
        """
        content = read_artifact(path, SCHEMA)
        try:
            table = cls(
                _key(content["key"]),
                rising(_points(content["verify"])),
                rising(_points(content["draft"])) if content["draft"] else (),
                whole_number(content["context"], "context"),
                *_short(content.get("block", 0), content.get("short", ())),
                _of_requests(content.get("of_requests", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is damaged",
                found=f"no {error}" if isinstance(error, KeyError) else error,
                fix="Measure again with `dspark profile`",
            ) from error
        if key is not None:
            table.check(key, str(path))
        return table

    def check(self, key: CostKey, where: str) -> None:
        """Refuse to be used for something else.

        Raises:
            IncompatibleDrafterError: naming the first part that differs, with both values.
        """
        for name, mine in asdict(self.key).items():
            theirs = getattr(key, name)
            if mine != theirs:
                what = {"kernels": "set of kernels"}.get(name, name)
                raise IncompatibleDrafterError(
                    f"The cost table {where} was measured for another {what}",
                    found=f"table {str(mine)[:60] or 'unnamed'}, here {str(theirs)[:60]}",
                    fix="Measure here with `dspark profile`",
                )


def _key(fields: Mapping[str, Any]) -> CostKey:
    """A table's key from a file; TypeError or ValueError where it is damaged."""
    key = CostKey(**fields)
    whole_number(key.threads, "threads", least=1)
    for name, value in asdict(key).items():
        if name != "threads" and not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}, no text")
    return key


def _points(points: Sequence[Any]) -> list[tuple[int, float]]:
    """Points from a file, each number what it says."""
    return [
        (whole_number(size, "a size", least=1), number(seconds, "a time", above=True))
        for size, seconds in points
    ]


def rising(points: Sequence[Sequence[float]]) -> Points:
    """Measured points in order, each time at least that of the point before.

    More work cannot take less time; where a measurement says so it is noise.

    Raises:
        ValueError: no point, a size twice or below 1, or a time that is not positive.
    """
    pairs = sorted((int(size), float(seconds)) for size, seconds in points)
    sizes = [size for size, _ in pairs]
    if not pairs or len(set(sizes)) < len(sizes) or sizes[0] < 1:
        raise ValueError("sizes must be distinct and 1 or more")
    times = np.maximum.accumulate([seconds for _, seconds in pairs])
    if not np.isfinite(times).all() or times[0] <= 0:
        raise ValueError("times must be positive")
    return tuple(zip(sizes, times.tolist(), strict=True))


def _joined(points: Points, more: Points) -> Points:
    """Points and those of other sizes; none where there is none."""
    found = {**dict(more), **dict(points)}
    return rising(list(found.items())) if found else ()


def _short(block: int, points: Sequence[Any]) -> tuple[int, tuple[tuple[int, Points], ...]]:
    """The fields `block` and `short` from a file; tables of before have neither.

    Raises:
        ValueError: slots that do not rise from 1 to less than a block.
    """
    short = tuple((whole_number(slots, "slots"), rising(_points(times))) for slots, times in points)
    sizes, block = [slots for slots, _ in short], whole_number(block, "block")
    if short and (sizes != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] < block):
        raise ValueError("slots of short blocks must rise and stay below the block's")
    return block if short else 0, short


def _of_requests(points: Sequence[Any]) -> tuple[tuple[int, Points], ...]:
    """The field `of_requests` from a file; tables of before have none.

    Raises:
        ValueError: requests that do not rise from 1 on, or rows fewer than requests.
    """
    found = tuple(
        (whole_number(requests, "requests"), rising(_points(times))) for requests, times in points
    )
    numbers = [requests for requests, _ in found]
    if found and (numbers != sorted(set(numbers)) or numbers[0] < 1):
        raise ValueError("numbers of requests must rise from 1 on")
    if any(times[0][0] < requests for requests, times in found):
        raise ValueError("a batch has a row for each request")
    return found


def envelope(seconds_B: Floats) -> Floats:
    """Lower convex envelope of step times over batch tokens, at every integer.

    On it expected throughput has a single peak, so a search that stops at the first dip finds it.
    """
    hull: list[int] = []
    for i in range(len(seconds_B)):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            # b lies on or above the line from a to i
            if (seconds_B[b] - seconds_B[a]) * (i - a) >= (seconds_B[i] - seconds_B[a]) * (b - a):
                hull.pop()
            else:
                break
        hull.append(i)
    return np.interp(np.arange(len(seconds_B)), hull, seconds_B[hull])


def _between(points: Points, most: int) -> Floats:
    """Times at 0 … most: straight between points, on at the mean slope; 0 costs what 1 does."""
    sizes, times = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    at = np.arange(most + 1)
    found = np.interp(at, sizes, times)
    if len(points) > 1 and most > sizes[-1]:
        slope = (times[-1] - times[0]) / (sizes[-1] - sizes[0])
        beyond = at > sizes[-1]
        found[beyond] = times[-1] + slope * (at[beyond] - sizes[-1])
    return np.asarray(found, dtype=np.float64)
