"""A training run as it lies on disk: what it was told, what it took, its held-out measures.

Weights are not needed and nothing is evaluated; torch is not loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from dspark.artifacts import expanded, read_jsonl
from dspark.errors import CheckpointError, ConfigError, DataError
from dspark.training.log import LOG

CONFIG, PROVENANCE, WEIGHTS = "config.json", "provenance.json", "model.safetensors"
# What a model file may hold beside the drafter's own weights: the target's, and id tables.
BORROWED = {"embed_tokens.weight", "lm_head.weight", "d2t", "t2d"}

Kind = TypeVar("Kind", bound=BaseModel)


class Part(BaseModel):
    """Base of what is read here; keys that are not used are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Measure(Part):
    """A held-out measure; `acceptance` by slot."""

    accepted_length: float
    acceptance: list[float | None] = []


class LogLine(Measure):
    """The same with its place in the run."""

    step: int
    minutes: float
    total_anchors: int


class Shape(Part):
    """`[drafter]` of a recipe."""

    kind: str
    block_size: int
    num_layers: int
    markov_rank: int = 0
    markov_head_type: str = "vanilla"
    draft_vocab_size: int = 0


class CheckpointShape(Part):
    """The same in a drafter's config.json, as far as it says."""

    dspark_kind: str | None = None
    block_size: int | None = None
    num_hidden_layers: int | None = None
    markov_rank: int | None = None
    markov_head_type: str | None = None
    draft_vocab_size: int = 0


class Data(Part):
    """`[data]` of a recipe: what decides which answers are held out."""

    responses: list[str]
    held_out_share: float
    max_length: int
    seed: int


class Recipe(Part):
    """The recipe, as far as it is looked at key by key."""

    target: str
    drafter: Shape
    data: Data


class Training(Part):
    """How far a run went."""

    step: int
    elapsed_s: float
    anchors: int
    answers: int | None = None
    held_out: dict[str, Any] | None = None


class Origin(Part):
    """A drafter's provenance.json."""

    device: str | None = None
    inputs: dict[str, str] = {}
    config: dict[str, Any] = Field(description="the whole recipe")
    training: Training


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        checkpoint: what config.json says; None where it does not lie there.
        measure: the held-out measure of the drafter in the folder.
        curve: held-out lines of the log, up to that drafter's step.
        parameters: trainable ones; None where the weights do not lie there.
        files: what was read, by its name below the run.
    """

    name: str
    origin: Origin
    recipe: Recipe
    checkpoint: CheckpointShape | None
    measure: Measure
    curve: list[LogLine]
    parameters: int | None
    files: dict[str, Path]

    @property
    def shape(self) -> Shape:
        """What the drafter is built like: config.json's word, else the recipe's."""
        asked, made = self.recipe.drafter, self.checkpoint
        if made is None:
            return asked
        return Shape(
            kind=made.dspark_kind or asked.kind,
            block_size=made.block_size or asked.block_size,
            num_layers=made.num_hidden_layers or asked.num_layers,
            markov_rank=made.markov_rank or 0,
            markov_head_type=made.markov_head_type or asked.markov_head_type,
            draft_vocab_size=made.draft_vocab_size,
        )


def find_runs(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """Name and folder of each run.

    Args:
        texts: a run's folder or a drafter's, with NAME= in front to name it.

    Raises:
        ConfigError: a name is empty, or two runs have the same one.
        DataError: there is no such folder.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals or Path(text).is_dir():  # a folder's own name may hold the sign
            name, place = "", text
        elif not name:
            raise ConfigError("A run's name is empty", found=text, fix="Write NAME=PATH")
        folder = expanded(place)
        if not folder.is_dir():
            raise DataError(
                f"there is no run {place}", fix="Give the `out` folder of a training, or a drafter"
            )
        name = name or _default_name(folder)
        if name in found:
            fix = "Name one of them: NAME=PATH"
            raise ConfigError("two runs have the same name", found=name, fix=fix)
        found[name] = folder
    return list(found.items())


def _default_name(folder: Path) -> str:
    whole = folder.resolve()
    return whole.parent.name if whole.name == "drafter" else whole.name


def read_run(name: str, folder: Path) -> Run:
    """Reads a run's folder, or a drafter's.

    Raises:
        DataError: the folder holds no provenance or no held-out measure, or a file is damaged.
        CheckpointError: the model file is damaged.
    """
    files = _files(folder)
    by_name = {path.name: path for path in files.values()}
    if PROVENANCE not in by_name:
        raise DataError(
            f"{folder} is no training run",
            found=f"no {PROVENANCE} in it or in its drafter/",
            fix="Give the `out` folder of a training, or a drafter that `dspark train` wrote",
        )
    origin = _read(by_name[PROVENANCE], Origin)
    curve = _curve(by_name[LOG], origin.training.step) if LOG in by_name else []
    return Run(
        name,
        origin,
        _checked(Recipe, origin.config, by_name[PROVENANCE], "config."),
        _read(by_name[CONFIG], CheckpointShape) if CONFIG in by_name else None,
        _measure(origin, curve, by_name[PROVENANCE]),
        curve,
        _parameters(by_name[WEIGHTS]) if WEIGHTS in by_name else None,
        files,
    )


def read_recipe(folder: Path) -> Recipe:
    """The recipe that a drafter in this folder was trained by.

    Raises:
        DataError: its provenance is missing, damaged, or says nothing of it.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        raise DataError(
            f"{folder} does not say which answers its training held out",
            found=f"no {PROVENANCE}",
            fix="Give answers that it was not trained on, with --whole",
        )
    return _checked(Recipe, _read(path, Origin).config, path, "config.")


def _files(folder: Path) -> dict[str, Path]:
    """Those of a run's files that are there, by their names below it."""
    is_run = (folder / "drafter" / PROVENANCE).is_file()
    drafter, inside = (folder / "drafter", "drafter/") if is_run else (folder, "")
    files = {inside + file: drafter / file for file in (PROVENANCE, CONFIG, WEIGHTS)}
    if is_run:
        files[LOG] = folder / LOG
    elif folder.resolve().name.startswith("drafter"):  # as a run names its own
        files[LOG] = folder.resolve().parent / LOG
    return {short: path for short, path in files.items() if path.is_file()}


def _curve(log: Path, step: int) -> list[LogLine]:
    """Held-out lines of the log up to the drafter's step; a run may have gone on since."""
    return [
        line
        for row in read_jsonl(log)
        if row.get("kind") == "held_out" and row.get("accepted_length") is not None
        if (line := _checked(LogLine, row, log)).step <= step
    ]


def _measure(origin: Origin, curve: list[LogLine], path: Path) -> Measure:
    held_out = origin.training.held_out
    if held_out and held_out.get("accepted_length") is not None:
        return _checked(Measure, held_out, path, "training.held_out.")
    if curve:
        return curve[-1]
    raise DataError(
        f"{path} tells of no held-out measure",
        found=f"training.held_out is {held_out or None}, and no such line up to step "
        f"{origin.training.step} in a {LOG}",
        fix="Finish the run with `dspark train`, with data.held_out_share above 0",
    )


def _parameters(weights: Path) -> int:
    """Counts weights by the shapes in the file's head; the weights themselves are not read."""
    total = 0
    try:
        with safe_open(weights, framework="numpy") as file:
            for key in set(file.keys()) - BORROWED:
                size = 1
                for length in file.get_slice(key).get_shape():
                    size *= length
                total += size
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(
            f"cannot read {weights}", found=exc, fix="Copy or export the drafter again"
        ) from exc
    return total


def _read(path: Path, kind: type[Kind]) -> Kind:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise DataError(f"cannot read {path}", found=exc.strerror, fix="Check the file") from exc
    except ValueError as exc:
        fix = "Copy it again from where the run was made"
        raise DataError(f"{path} is damaged: not valid JSON", found=exc, fix=fix) from exc
    return _checked(kind, content, path)


def _checked(kind: type[Kind], data: Any, path: Path, above: str = "") -> Kind:
    try:
        return kind.model_validate(data)
    except ValidationError as exc:
        error = exc.errors()[0]
        key = above + ".".join(map(str, error["loc"]))
        raise DataError(
            f"{path}: {key.strip('.') or 'its content'} cannot be used",
            found=error["msg"],
            fix="Give a run that `dspark train` made",
        ) from exc
