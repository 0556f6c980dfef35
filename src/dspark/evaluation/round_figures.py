"""Figures of completions whose rounds were counted: tokens a round, paired with the first drafter.

Suffixes: B resamples, P completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dspark.maths.bootstrap import Floats, ratio, resample_counts
from dspark.maths.summary import rounded, rounded_interval

SCHEMA = "dspark.rounds/1"
DIGITS = 5  # of rounds


def figures(
    counted: Sequence[Mapping[str, Any]], drafters: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """`rows` and `per_completion` of schema dspark.rounds/1.

    Args:
        counted: what `text_rounds.run` gave, one or more.
        drafters: by name, fields that its rows start with.

    Returns:
        Intervals are 95 % percentile bootstraps over completions. All drafters meet the same
        resamples, so gains over the first are paired.
    """
    temperatures = list(next(iter(counted[0]["rounds"].values())))
    tokens_P = np.array([row["tokens"] for row in counted], np.float64)
    resamples_BP = resample_counts(len(counted))
    rows, per_drafter = [], dict[str, dict[str, list[float]]]()
    for temperature in temperatures:
        first: tuple[float, Floats] | None = None
        for name, fields in drafters.items():
            rounds = [row["rounds"][name][temperature] for row in counted]
            per_drafter.setdefault(name, {})[temperature] = [round(r, DIGITS) for r in rounds]
            rounds_P = np.array(rounds, np.float64)
            length = float(ratio(tokens_P.sum(), rounds_P.sum()))
            length_B = ratio(resamples_BP @ tokens_P, resamples_BP @ rounds_P)
            first = first or (length, length_B)
            rows.append(
                {
                    "drafter": name,
                    **fields,
                    "temperature": float(temperature),
                    "rounds": round(float(rounds_P.sum()), DIGITS),
                    "tokens_per_round": rounded(length),
                    "tokens_per_round_ci": rounded_interval(length_B),
                    "gain": rounded(length / first[0] - 1),
                    "gain_ci": rounded_interval(length_B / first[1] - 1),
                }
            )
    return {"rows": rows, "per_completion": _per_completion(counted, per_drafter)}


def _per_completion(
    counted: Sequence[Mapping[str, Any]], rounds: Mapping[str, Any]
) -> dict[str, Any]:
    fields = ("key", "domain", "temperature", "tokens", "best_share", "deviate")
    return {name: [row[name] for row in counted] for name in fields} | {"rounds": rounds}
