"""Training runs side by side: how they differ from the first, what each took and reached.

Held-out figures are the runs' own: teacher-forced, each on the answers that its run held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspark.artifacts import sha256_file
from dspark.config import leaf_values
from dspark.evaluation.runs import Run

SCHEMA = "dspark.runs/1"
# Where things lie is no difference between runs; other data is, and is told as a warning.
PLACES = {"out", "data.responses", "data.store"}


def side_by_side(runs: Sequence[Run], study: str | None = None) -> dict[str, Any]:
    """The fields of a dspark.runs/1 file."""
    first = _settings(runs[0])
    return {
        "study": study,
        "config": first,
        "warnings": warnings(runs),
        "rows": [_row(run, differences(first, _settings(run))) for run in runs],
    }


def differences(first: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Keys whose values differ, with the second's; None where it has no such key."""
    keys = dict.fromkeys([*first, *own])
    return {key: own.get(key) for key in keys if own.get(key) != first.get(key)}


def warnings(runs: Sequence[Run]) -> list[str]:
    """A line for each run that held out other answers than the first."""
    first = _held_out(runs[0])
    lines = []
    for run in runs[1:]:
        other = [what for what, value in _held_out(run).items() if value != first[what]]
        if other:
            lines.append(
                f"{run.name} was measured on other held-out answers than {runs[0].name} "
                f"({', '.join(other)} differ): their held-out figures do not compare"
            )
    return lines


def hashes(runs: Sequence[Run]) -> dict[str, str]:
    """SHA-256 of every file that was read, by the run's name and the file's below it."""
    return {
        f"{run.name}/{short}": sha256_file(path)
        for run in runs
        for short, path in run.files.items()
    }


def _settings(run: Run) -> dict[str, Any]:
    found = leaf_values(run.origin.config)
    return {key: value for key, value in found if key not in PLACES}


def _held_out(run: Run) -> dict[str, Any]:
    """What decides which answers are held out and where they are cut."""
    data = run.recipe.data
    return {
        "target": run.recipe.target,
        "data files": list(run.origin.inputs.values()) or data.responses,
        "data.held_out_share": data.held_out_share,
        "data.max_length": data.max_length,
        "data.seed": data.seed,
    }


def _row(run: Run, differs: dict[str, Any]) -> dict[str, Any]:
    shape, training, measure = run.shape, run.origin.training, run.measure
    return {
        "name": run.name,
        "kind": shape.kind,
        "num_layers": shape.num_layers,
        "block_size": shape.block_size,
        "markov_head_type": shape.markov_head_type if shape.markov_rank else None,
        "markov_rank": shape.markov_rank,
        "draft_vocab_size": shape.draft_vocab_size or None,
        "parameters": run.parameters,
        "differs": differs,
        "device": run.origin.device,
        "minutes": round(training.elapsed_s / 60, 2),
        "steps": training.step,
        "anchors": training.anchors,
        "answers": training.answers,
        "accepted_length": measure.accepted_length,
        "acceptance": measure.acceptance,
        "curve": [[at.minutes, at.total_anchors, at.accepted_length] for at in run.curve],
    }
