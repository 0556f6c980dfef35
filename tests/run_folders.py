"""Folders of training runs as `dspark train` leaves them, written by hand, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HELD_OUT = {"loss": 2.1, "acceptance": [0.5, 0.4, 0.3], "accepted_length": 1.8}
CONFIG: dict[str, Any] = {
    "target": "tiny-target",
    "out": "base",
    "data": {
        "responses": ["answers.jsonl"],
        "held_out_share": 0.02,
        "max_length": 1024,
        "seed": 0,
        "store": None,
    },
    "drafter": {
        "kind": "dspark",
        "block_size": 3,
        "num_layers": 2,
        "target_layer_ids": [1, 2],
        "markov_rank": 128,
        "markov_head_type": "vanilla",
        "draft_vocab_size": 16384,
    },
    "optim": {"lr": 0.002},
    "run": {"steps": 400, "minutes": None},
}


def log_line(step: int, length: float, kind: str = "held_out") -> dict[str, Any]:
    """A line of a training log: a step a second, ten anchors a step."""
    place = {"step": step, "minutes": round(step / 60, 2), "total_anchors": 10 * step}
    return {"kind": kind, **HELD_OUT, "accepted_length": length, **place}


def write_run(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    held_out: dict[str, Any] | None = HELD_OUT,
    step: int = 400,
    device: str | None = "Example GPU",
    inputs: dict[str, str] | None = None,
    log: list[dict[str, Any]] | None = None,
) -> Path:
    """A run below `folder`.

    Args:
        config: dotted keys and values that replace those of `CONFIG`.
        checkpoint: content of config.json; without it there is none, as where weights were left
            behind.
        held_out: the measure in the provenance.
        log: rows of the log; by default one training line and two held-out ones.
    """
    recipe = json.loads(json.dumps(CONFIG)) | {"out": folder.name}
    for key, value in (config or {}).items():
        section, _, name = key.rpartition(".")
        (recipe[section] if section else recipe)[name] = value
    provenance = {
        "command": "dspark train",
        "device": device,
        "inputs": inputs or {"answers.jsonl": "ab" * 32},
        "config": recipe,
        "training": {
            "step": step,
            "elapsed_s": float(step),
            "anchors": 10 * step,
            "answers": 1000,
            "held_out": held_out,
        },
    }
    (folder / "drafter").mkdir(parents=True)
    (folder / "drafter" / "provenance.json").write_text(json.dumps(provenance))
    if checkpoint is not None:
        (folder / "drafter" / "config.json").write_text(json.dumps(checkpoint))
    rows = [log_line(100, 1.1, "train"), log_line(200, 1.5), log_line(400, 1.8)]
    lines = [json.dumps(row) + "\n" for row in (rows if log is None else log)]
    (folder / "train_log.jsonl").write_text("".join(lines))
    return folder
