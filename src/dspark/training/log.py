"""The run's log: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dspark.artifacts import append_jsonl, atomic_write_text, read_jsonl, repair_jsonl

LOG = "train_log.jsonl"


def append_log(out: Path, record: dict[str, Any]) -> None:
    """Add a line to the log below ``out``."""
    append_jsonl(out / LOG, [record])


def trim_log(out: Path, step: int) -> None:
    """Drop the lines of steps beyond ``step``: a kill threw them back, they will be done again."""
    path = out / LOG
    if not path.exists():
        return
    repair_jsonl(path)
    rows = list(read_jsonl(path))
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
