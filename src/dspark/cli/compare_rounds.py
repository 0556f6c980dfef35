"""`dspark compare --rounds`: the rounds of held-out answers, counted exactly along their text."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark.api.names import find_drafter
from dspark.artifacts import find_data, provenance, write_artifact
from dspark.cli.common import load_models, passing_bar
from dspark.cli.outputs import beside, claim
from dspark.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dspark.data.held_out import Split
    from dspark.targets.target import Target

FEW_NAMED = 3  # answers that a warning names


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be counted; fields as on the command line."""

    runs: Sequence[str]
    data: Sequence[str]
    whole: bool
    limit: int | None
    temperatures: tuple[float, ...]
    verification: str
    study: str | None


def compare_rounds(
    asked: Asked, target: str, dtype: str, threads: int | None, json_file: Path | None
) -> None:
    """Count, show and write.

    Raises:
        ConfigError: no file of answers is named, or two drafters have one name.
        DataError: a file of answers is missing or damaged, or the drafters held out other ones.
        CheckpointError, IncompatibleDrafterError: a drafter cannot be read, or does not fit.
    """
    if not asked.data:
        raise ConfigError("--rounds needs answers of the target", fix="Name them with --data")
    claim(json_file)
    folders = drafter_folders(asked.runs, target)
    sources = [find_data(name) for name in asked.data]
    split = None if asked.whole else common_split(folders)
    from dspark.data.held_out import completions_to_measure
    from dspark.evaluation import text_rounds
    from dspark.evaluation.round_figures import SCHEMA, figures
    from dspark.targets.names import portable_name

    model, _ = load_models(target, "none", dtype, threads)
    answers = completions_to_measure(sources, split, asked.limit, model.spec.vocab_size)
    judged = _loaded(folders, model)
    settings = text_rounds.Settings(asked.temperatures, asked.verification)
    kept = beside(json_file, ".answers.jsonl")
    with passing_bar() as bar:
        task = bar.add_task("starting", total=len(answers))
        counted = text_rounds.run(
            model,
            judged,
            answers,
            settings,
            rows_path=kept,
            on_done=lambda done, of: bar.update(
                task, completed=done, description=f"{done} of {of} answers"
            ),
        )
    result = {
        "target": portable_name(target),
        "dtype": model.precision,
        "study": asked.study,
        "verification": asked.verification,
        "held_out": split is not None,
        "answers": len(answers),
        "tokens": sum(row["tokens"] for row in counted),
        "warnings": warnings(counted, asked.temperatures),
        **figures(counted, {name: _fields(found) for name, found in judged.items()}),
    }
    if json_file is not None:
        inputs = [*sources, *folders.values()]
        write_artifact(json_file, SCHEMA, result, provenance("dspark compare", None, inputs))
    if kept is not None:
        kept.unlink(missing_ok=True)
    Console(highlight=False).print(shown(result))
    for line in result["warnings"]:
        print(f"dspark: warning: {line}", file=sys.stderr)


def drafter_folders(texts: Sequence[str], target: str) -> dict[str, Path]:
    """Each drafter's name and folder, from runs' folders, drafters' and shipped names.

    Raises:
        ConfigError: a name is empty, or two are the same.
        CheckpointError, IncompatibleDrafterError: see `find_drafter`.
    """
    from dspark.evaluation.runs import find_runs

    found: dict[str, Path] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals or Path(text).is_dir():
            name, place = "", text
        elif not name:
            raise ConfigError("A drafter's name is empty", found=text, fix="Write NAME=PATH")
        if Path(place).is_dir():
            [(own, folder)] = find_runs([place])
            inside = folder / "drafter"
            folder = inside if (inside / "config.json").is_file() else folder
        else:
            shipped = find_drafter(place, target)
            if shipped is None:
                raise ConfigError("There is nothing to count without a drafter", found=text)
            own, folder = place, shipped
        if (name or own) in found:
            fix = "Name one of them: NAME=PATH"
            raise ConfigError("two drafters have the same name", found=name or own, fix=fix)
        found[name or own] = folder
    return found


def common_split(folders: Mapping[str, Path]) -> Split:
    """How the drafters' trainings held answers out; the same way for all.

    Raises:
        DataError: a drafter does not say, or two differ.
    """
    from dspark.data.held_out import Split
    from dspark.evaluation.runs import read_recipe

    splits = {}
    for name, folder in folders.items():
        data = read_recipe(folder).data
        splits[name] = Split(data.held_out_share, data.max_length, data.seed)
    first, *others = splits.items()
    for name, split in others:
        if split != first[1]:
            raise DataError(
                f"{name} held out other answers than {first[0]}",
                found=f"{split} and {first[1]}",
                fix="Give answers that neither was trained on, with --whole",
            )
    return first[1]


def _loaded(folders: Mapping[str, Path], target: Target) -> dict[str, Any]:
    """Drafters in the target's number type, not packed: whole texts go through them."""
    from dspark.artifacts import sha256_file
    from dspark.drafters.checkpoint import WEIGHTS, load_drafter
    from dspark.evaluation.text_rounds import Judged, check_kinds

    found = {}
    for name, folder in folders.items():
        drafter = load_drafter(folder, target, pack=False)
        drafter.to(target.dtype).eval().requires_grad_(False)
        drafter.bind(target)
        check_kinds({name: drafter})
        found[name] = Judged(drafter, sha256_file(folder / WEIGHTS))
    return found


def _fields(judged: Any) -> dict[str, Any]:
    config = judged.drafter.config
    return {"kind": config.kind, "block_size": config.block_size, "sha256": judged.sha256}


def warnings(counted: Sequence[Mapping[str, Any]], temperatures: Sequence[float]) -> list[str]:
    """What a reader of the figures must know of the answers."""
    from dspark.evaluation.text_rounds import looks_foreign

    lines = []
    foreign = [row["key"] for row in counted if looks_foreign(row)]
    if foreign:
        named = ", ".join(foreign[:FEW_NAMED]) + (", …" if len(foreign) > FEW_NAMED else "")
        lines.append(
            f"{len(foreign)} of {len(counted)} answers are hardly the target's own ({named}): what "
            "is counted for them is no decoding of this target"
        )
    for temperature in temperatures:
        others = sorted({row["temperature"] for row in counted} - {temperature})
        if others:
            count = sum(row["temperature"] != temperature for row in counted)
            drawn = ", ".join(f"{t:g}" for t in others)
            lines.append(
                f"{count} of {len(counted)} answers were drawn at temperature {drawn}: at "
                f"{temperature:g} the count is exact for these texts, and decoding makes others"
            )
    return lines


def shown(result: Mapping[str, Any]) -> Table:
    """The figures as a table."""
    first = result["rows"][0]["drafter"]
    title = f"{result['target']}, {result['dtype']}: {result['answers']} "
    title += "held-out answers" if result["held_out"] else "answers"
    title += f", {result['tokens']:,d} tokens, verification {result['verification']}"
    study = result["study"]
    table = Table(title=escape(study or title), caption=escape(title) if study else None)
    table.add_column("drafter", overflow="fold")
    for heading in ("temp.", "rounds", "tokens a round", f"gain over {first}"):
        table.add_column(escape(heading), justify="right")
    before = None
    for row in result["rows"]:
        if before not in (None, row["temperature"]):
            table.add_section()
        before = row["temperature"]
        gain = "-" if row["drafter"] == first else _with_ends(row, "gain", "+.2%")
        table.add_row(
            escape(row["drafter"]),
            f"{row['temperature']:g}",
            f"{row['rounds']:,.1f}",
            _with_ends(row, "tokens_per_round", ".3f"),
            gain,
        )
    return table


def _with_ends(row: Mapping[str, Any], name: str, form: str) -> str:
    low, high = row[f"{name}_ci"]
    return f"{row[name]:{form}} [{low:{form}}, {high:{form}}]"
