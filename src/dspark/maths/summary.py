"""Summaries of evaluation rows: intervals, macro averages, gains.

Works on plain dictionaries with the fields of a row of schema dspark.eval/1; torch is not needed.
Every interval is a 95 % percentile bootstrap that draws prompts anew inside each dataset. The
draws belong to the dataset's name, so all drafters meet the same ones and gains are paired.

Suffixes: B resamples, P prompts, K slots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from dspark.maths.bootstrap import Floats, interval, ratio, resample_counts, slope

Row = Mapping[str, Any]
DIGITS = 4


def rounded(value: float) -> float | None:
    """A figure as it is stored; None for NaN."""
    return None if math.isnan(value) else round(float(value), DIGITS)


def rounded_interval(values_B: Floats) -> list[float] | None:
    """The 95 % interval of resampled values as it is stored."""
    found = interval(values_B)
    return None if found is None else [round(end, DIGITS) for end in found]


# ---- one row ------------------------------------------------------------------------------------


def lengths(row: Row) -> tuple[float, Floats]:
    """accepted_length of a row from its per-prompt counts: the value, and [B] resampled ones."""
    pairs_2P = np.array([row["per_prompt"]["committed"], row["per_prompt"]["rounds"]], np.float64)
    committed_B, rounds_B = (_resampled(row) @ pairs_2P.T).T
    committed, rounds = pairs_2P.sum(1)
    return float(ratio(committed, rounds)), ratio(committed_B, rounds_B)


def slot_counts(row: Row) -> tuple[Floats, Floats]:
    """Accepted and reached rounds by slot: [2, K], and [2, B, K] of the resamples."""
    counts_2PK = np.array([row["per_prompt"]["accepted"], row["per_prompt"]["reached"]], np.float64)
    return counts_2PK.sum(1), _resampled(row) @ counts_2PK


def _resampled(row: Row) -> Floats:
    """[B, P]: how often each prompt counts in each resample."""
    return resample_counts(len(row["per_prompt"]["rounds"]), crc32(row["dataset"].encode()))


def row_intervals(row: Row) -> dict[str, Any]:
    """`accepted_length_ci` and `accept_by_position_ci` of a row with `dataset` and `per_prompt`."""
    accepted_BK, reached_BK = slot_counts(row)[1]
    return {
        "accepted_length_ci": rounded_interval(lengths(row)[1]),
        "accept_by_position_ci": [
            rounded_interval(values_B) for values_B in ratio(accepted_BK, reached_BK).T
        ],
    }


# ---- several rows -------------------------------------------------------------------------------


def macro(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Averages over datasets, for each drafter, temperature and policy in order of appearance.

    Returns:
        One dictionary a group: `drafter`, `temperature`, `policy`; `accepted_length` (mean over
        the datasets of each domain, then over domains) with `accepted_length_ci` and `by_domain`;
        `accept_by_position` over all datasets' rounds together, its least-squares `slope` over
        the slots and `slope_ci`; and `gains`: by other drafter, see `gain`.
    """
    groups: dict[tuple[str, float, str], list[Row]] = {}
    for row in rows:
        key = (row["drafter"], row["temperature"], row["policy"])
        groups.setdefault(key, []).append(row)
    found = []
    for mine in groups.values():
        others = [theirs for theirs in groups.values() if _comparable(mine, theirs)]
        gains = {theirs[0]["drafter"]: gain(mine, theirs) for theirs in others}
        found.append(_macro_of(mine) | {"gains": gains})
    return found


def gain(mine: Sequence[Row], theirs: Sequence[Row]) -> dict[str, Any]:
    """How much longer one drafter's macro accepted_length is than another's.

    Args:
        mine, theirs: rows of the same datasets and prompts.

    Returns:
        `gain`, 0.1 for 10 % more, and `ci`, its paired interval.
    """
    (value, value_B), (other, other_B) = macro_length(mine), macro_length(theirs)
    return {
        "gain": rounded(float(ratio(value, other)) - 1),
        "ci": rounded_interval(ratio(value_B, other_B) - 1),
    }


def macro_length(rows: Sequence[Row]) -> tuple[float, Floats]:
    """Mean accepted_length over domains of the means over their datasets: value, and [B]."""
    value, value_B = (
        np.mean(list(_by_domain(rows, values).values()), axis=0)
        for values in zip(*map(lengths, rows), strict=True)
    )
    return float(value), value_B


def _by_domain(rows: Sequence[Row], values: Sequence[Any]) -> dict[str, Any]:
    """Mean of the datasets' values in each domain."""
    domains: dict[str, list[Any]] = {}
    for row, value in zip(rows, values, strict=True):
        domains.setdefault(row["domain"], []).append(value)
    return {domain: np.mean(among, axis=0) for domain, among in domains.items()}


def _macro_of(rows: Sequence[Row]) -> dict[str, Any]:
    value, value_B = macro_length(rows)
    by_domain = _by_domain(rows, [lengths(row)[0] for row in rows])
    counts, resampled = zip(*map(slot_counts, rows), strict=True)
    (accepted_K, reached_K), (accepted_BK, reached_BK) = sum(counts), sum(resampled)
    by_position_K = ratio(accepted_K, reached_K)
    return {
        "drafter": rows[0]["drafter"],
        "temperature": rows[0]["temperature"],
        "policy": rows[0]["policy"],
        "accepted_length": rounded(value),
        "accepted_length_ci": rounded_interval(value_B),
        "by_domain": {domain: rounded(mean) for domain, mean in by_domain.items()},
        "accept_by_position": [rounded(a) for a in by_position_K],
        "slope": rounded(slope(by_position_K)),
        "slope_ci": rounded_interval(slope(ratio(accepted_BK, reached_BK))),
    }


def _comparable(mine: Sequence[Row], theirs: Sequence[Row]) -> bool:
    """Two drafters on the same prompts, equally warm, under the same policy.

    The whole block is the same policy for drafters of different block sizes.
    """
    return (
        mine[0]["drafter"] != theirs[0]["drafter"]
        and mine[0]["temperature"] == theirs[0]["temperature"]
        and _policy(mine[0]) == _policy(theirs[0])
        and _prompts(mine) == _prompts(theirs)
    )


def _policy(row: Row) -> str:
    whole = f"fixed:{row['shape']['block_size']}"
    return "whole block" if row["policy"] == whole else str(row["policy"])


def _prompts(rows: Sequence[Row]) -> dict[str, tuple[str, list[str]]]:
    return {row["dataset"]: (row["domain"], row["per_prompt"]["ids"]) for row in rows}
