"""Fit and judge a drafter's confidences (DSpark §3.2.1, Sequential Temperature Scaling).

Suffixes: N rounds, K block slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark.calibration.collect import Collected, OnProgress, about, collect
from dspark.calibration.prompts import in_check
from dspark.calibration.rounds import Rounds
from dspark.core import DEFAULT_RULE, SamplingParams
from dspark.data.bad_rows import BadRows
from dspark.data.prompts import Prompt
from dspark.drafters.drafter import Drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.errors import DataError, IncompatibleDrafterError
from dspark.maths.reliability import (
    auroc,
    brier,
    curve,
    ece,
    equal_mass_bins,
    mean_known,
    noise_floor,
)
from dspark.maths.temperature_scaling import sequential_temperature_scaling
from dspark.tables.calibration import CalibrationEntry, confidence_logits
from dspark.targets.target import Target

CHECK_SCHEMA = "dspark.calibration_check/1"
FEW_ROUNDS = 2000  # their noise alone makes about 1.5 % of ECE
_MEANS = ("ece_before", "ece_after", "auroc", "auroc_true", "noise_floor")


def run(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    part: Path,
    *,
    rounds: int,
    check_share: float,
    slots: int,
    seed: int = 0,
    verification: str = DEFAULT_RULE,
    entry: CalibrationEntry | None = None,
    on_progress: OnProgress = lambda progress: None,
    bad_rows: BadRows | None = None,
) -> tuple[CalibrationEntry, dict[str, Any]]:
    """Collect rounds, fit an entry on some prompts and judge it on the others.

    Args:
        prompts: held out from the drafter's training, in the order they are taken.
        params: the way of sampling that the entry is for, and the length limit of answers.
        part: where the rounds of an unfinished run are kept; the caller removes it.
        rounds: rounds wanted for the check, not counting those fitted on.
        check_share: share of the prompts kept out of fitting.
        slots: answers made at the same time.
        seed: decides the draws.
        verification: the rule by which drafts above temperature 0 are accepted.
        entry: judge this one and fit none.
        on_progress: called after every step.
        bad_rows: see `collect`.

    Returns:
        the entry, and the fields of schema dspark.calibration_check/1.

    Raises:
        IncompatibleDrafterError: the drafter has no confidence head.
        DataError: there is no round to fit on or to judge, or `part` cannot be written.
        CheckpointError: a confidence is not a number.
    """
    _check_head(drafter)
    if entry is not None:  # nothing is fitted, so nobody answers what would be fitted on
        prompts = [prompt for prompt in prompts if in_check(prompt.id, check_share)]
    collected = collect(
        target,
        drafter,
        prompts,
        params,
        part,
        rounds=rounds,
        check_share=check_share,
        slots=slots,
        seed=seed,
        verification=verification,
        on_progress=on_progress,
        bad_rows=bad_rows,
    )
    _check_rounds(collected, len(prompts), fits=entry is None)
    entry = entry or replace(
        fit(collected.fit, params),
        confidence=_head(drafter, params),
        verification=verification if params.temperature else "",
    )
    described = about(target, drafter, params, verification) | _counts(collected, entry)
    return entry, described | judge(collected.check, entry)


def _check_head(drafter: Drafter) -> None:
    """Refuse a drafter that says nothing of how sure it is."""
    if not drafter.config.gives_confidence:
        raise IncompatibleDrafterError(
            "The drafter has no confidence head, so there is nothing to calibrate",
            found=f"kind {drafter.config.kind}",
            fix="Use a DSpark drafter that was trained with one",
        )


def _head(drafter: Drafter, params: SamplingParams) -> str:
    """SHA-256 of the informed head that speaks for drafts made so, "" without one."""
    informed = drafter.informed if isinstance(drafter, DSparkDrafter) else None
    return informed.sha256 if informed is not None and params.temperature else ""


def _check_rounds(collected: Collected, prompts: int, fits: bool) -> None:
    """Refuse to judge, or to fit, without a round."""
    if not len(collected.check) or (fits and not len(collected.fit)):
        raise DataError(
            "There are no rounds to calibrate with",
            found=f"{len(collected.fit)} rounds to fit on, {len(collected.check)} to check with, "
            f"{prompts} prompts, {collected.skipped} of them too long",
            fix="Give more prompts, or a --check-share nearer to 0.5",
        )


def _counts(collected: Collected, entry: CalibrationEntry) -> dict[str, Any]:
    """How much was calibrated with."""
    return {
        "prompts": collected.check.prompts,
        "prompts_skipped": collected.skipped,
        "fit_rounds": entry.rounds,
        "fit_prompts": entry.prompts,
    }


def fit(rounds: Rounds, params: SamplingParams) -> CalibrationEntry:
    """A table entry from rounds made with `params`; its metrics are empty."""
    temperatures_K = sequential_temperature_scaling(
        confidence_logits(rounds.confidence_NK), rounds.accepted_NK, rounds.valid_NK
    )
    block_size = len(temperatures_K)
    entry = CalibrationEntry(
        params.temperature,
        params.top_p,
        params.top_k,
        tuple(temperatures_K.tolist()),
        (0.0,) * block_size,
        len(rounds),
        rounds.prompts,
        params.max_new_tokens,
    )
    mean_K = entry.survival(rounds.confidence_NK).mean(axis=0)
    return replace(entry, mean_survival=tuple(mean_K.tolist()))


def judge(rounds: Rounds, entry: CalibrationEntry) -> dict[str, Any]:
    """How well survival, as the drafter gave it and calibrated, predicts what was accepted.

    Returns:
        `rounds`, the means over positions and `positions` of schema dspark.calibration_check/1.
    """
    raw_NK = np.cumprod(rounds.confidence_NK, axis=1)
    survival_NK = entry.survival(rounds.confidence_NK)
    true_NK = np.cumprod(rounds.overlap_NK, axis=1)
    positions = []
    for k, temperature in enumerate(entry.temperatures):
        rows = rounds.valid_NK[:, k]
        row = _position(raw_NK[rows, k], survival_NK[rows, k], rounds.accepted_NK[rows, k])
        row["auroc_true"] = _auroc_true(true_NK[rows, k], rounds.accepted_NK[rows, k])
        positions.append({"k": k + 1, **row, "temperature": temperature})
    means = {f"{name}_mean": mean_known([row[name] for row in positions]) for name in _MEANS}
    return {"rounds": len(rounds), **means, "positions": positions}


def _auroc_true(true_N: NDArray[np.float64], accepted_N: NDArray[np.bool_]) -> float:
    """AUROC of the true acceptance rates: what no confidence head could pass; NaN if not known."""
    return auroc(true_N, accepted_N) if np.isfinite(true_N).all() else float("nan")


def _position(
    before_N: NDArray[np.float64], after_N: NDArray[np.float64], accepted_N: NDArray[np.bool_]
) -> dict[str, Any]:
    return {
        "rounds": len(accepted_N),
        "base_rate": mean_known(accepted_N.tolist()),
        "ece_before": ece(before_N, accepted_N),
        "ece_after": ece(after_N, accepted_N),
        "ece_mass_before": ece(before_N, accepted_N, equal_mass_bins(before_N)),
        "ece_mass_after": ece(after_N, accepted_N, equal_mass_bins(after_N)),
        "auroc": auroc(after_N, accepted_N),
        "brier_before": brier(before_N, accepted_N),
        "brier_after": brier(after_N, accepted_N),
        "noise_floor": noise_floor(after_N),
        "curve_before": curve(before_N, accepted_N),
        "curve_after": curve(after_N, accepted_N),
    }
