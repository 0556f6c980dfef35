"""Finds result files and reads them by their schema."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dspark.artifacts import expanded, read_jsonl, sha256_file
from dspark.errors import DataError
from dspark.reporting.calibration_records import CalibrationCheck, ConfidenceFit
from dspark.reporting.records import (
    Demo,
    Eval,
    HeadCost,
    HeldOut,
    Load,
    Peers,
    Provenance,
    Record,
    Runs,
)
from dspark.reporting.system_records import (
    Audit,
    Cost,
    Floor,
    Kernels,
    ServeOverhead,
    SoakEngine,
    SoakFuzz,
    SoakKills,
    SoakServer,
    Start,
    TrainProfile,
    Weights,
)

Kind = TypeVar("Kind", bound=Record)

SCHEMAS: dict[str, type[Record]] = {
    "dspark.eval/1": Eval,
    "dspark.calibration_check/1": CalibrationCheck,
    "dspark.confidence_fit/1": ConfidenceFit,
    "dspark.demo/1": Demo,
    "dspark.head_cost/1": HeadCost,
    "dspark.load/1": Load,
    "dspark.peers/1": Peers,
    "dspark.cost/1": Cost,
    "dspark.floor/1": Floor,
    "dspark.start/1": Start,
    "dspark.kernels/1": Kernels,
    "dspark.weights/1": Weights,
    "dspark.audit/1": Audit,
    "dspark.serve_overhead/1": ServeOverhead,
    "dspark.soak_engine/1": SoakEngine,
    "dspark.soak_server/1": SoakServer,
    "dspark.soak_kills/1": SoakKills,
    "dspark.soak_fuzz/1": SoakFuzz,
    "dspark.train_profile/1": TrainProfile,
    "dspark.runs/1": Runs,
}
TRAIN_LOGS = "train_log*.jsonl"
TRAIN_LOG_SCHEMA = "training log"


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was read.

    Args:
        name: path below its input folder, that folder's own name first; numbered if need be.
    """

    name: str
    schema: str
    sha256: str
    provenance: Provenance

    @property
    def machine(self) -> str:
        """What speeds depend on: the accelerator, or else the processor; "" if not known."""
        cpu = self.provenance.cpu
        processor = f"{cpu.model}, {cpu.count} processors" if cpu.model else ""
        return self.provenance.device or processor


@dataclass(slots=True)
class Results:
    """Everything that was found; `notes` names the files that were passed over, and why."""

    records: list[tuple[str, Record]] = field(default_factory=list)
    train_logs: dict[str, list[HeldOut]] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, kind: type[Kind]) -> list[tuple[str, Kind]]:
        """(file name, record) of every file of one schema."""
        return [(name, record) for name, record in self.records if isinstance(record, kind)]

    def machine(self, name: str) -> str:
        """What the file of this name was made on; "" if it does not say."""
        return next((source.machine for source in self.sources if source.name == name), "")


def load(paths: Sequence[Path]) -> Results:
    """Reads files, and folders with all that lies below them.

    JSON files count by their `schema`, `train_log*.jsonl` as training logs.

    Raises:
        DataError: a path is missing, a file is damaged or breaks its schema, or no result file
            is among them.
    """
    results = Results()
    for path, name in _find(paths):
        if path.suffix == ".jsonl":
            _add_train_log(results, path, name)
        else:
            _add_artifact(results, path, name)
    if not results.sources:
        raise DataError(
            f"no result file in {', '.join(map(str, paths))}",
            found="; ".join(results.notes) or "no JSON file",
            fix="Make some first: dspark demo --json results/demo.json",
        )
    return results


def _find(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    seen: set[Path] = set()
    named: Counter[str] = Counter()
    for given in paths:
        root = expanded(given).resolve()
        if root.is_dir():
            found = sorted([*root.rglob("*.json"), *root.rglob(TRAIN_LOGS)])
            files = [path for path in found if path.is_file()]
            names = [f"{root.name}/{path.relative_to(root).as_posix()}" for path in files]
        elif root.is_file():
            files, names = [root], [f"{root.parent.name}/{root.name}"]
        else:
            raise DataError(f"{given} does not exist", fix="Give a result file or a folder")
        for path, name in zip(files, names, strict=True):
            if path not in seen:
                seen.add(path)
                named[name] += 1
                yield path, f"{name} ({named[name]})" if named[name] > 1 else name


def _add_artifact(results: Results, path: Path, name: str) -> None:
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise DataError(f"cannot read {path}", found=exc.strerror, fix="Check the path") from exc
    try:
        data = json.loads(content)
    except ValueError as exc:
        fix = "Make the file again, or take it out of the folder"
        raise DataError(f"{path} is damaged: not valid JSON", found=exc, fix=fix) from exc
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or schema not in SCHEMAS:
        why = f"unknown schema {schema}" if schema else "no schema"
        results.notes.append(f"{name} is left out: {why}")
        return
    results.records.append((name, _checked(SCHEMAS[schema], data, path)))
    provenance = _checked(Provenance, data.get("provenance") or {}, path)
    digest = hashlib.sha256(content).hexdigest()
    results.sources.append(Source(name, schema, digest, provenance))


def _add_train_log(results: Results, path: Path, name: str) -> None:
    rows = [row for row in read_jsonl(path) if row.get("kind") == "held_out"]
    points = [_checked(HeldOut, row, path) for row in rows if "accepted_length" in row]
    if not points:
        results.notes.append(f"{name} is left out: no held-out measure")
        return
    results.train_logs[name] = points
    results.sources.append(Source(name, TRAIN_LOG_SCHEMA, sha256_file(path), Provenance()))


def _checked(kind: type[Kind], data: Any, path: Path) -> Kind:
    try:
        return kind.model_validate(data)
    except ValidationError as exc:
        error = exc.errors()[0]
        key = ".".join(map(str, error["loc"])) or "its content"
        raise DataError(
            f"{path}: {key} does not fit its schema",
            found=error["msg"],
            fix="Make the file again with this version",
        ) from exc
