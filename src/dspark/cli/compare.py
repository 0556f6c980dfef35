"""`dspark compare`: training runs side by side, from what they left on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark.artifacts import provenance, write_artifact
from dspark.cli.common import (
    DEFAULT_DTYPE,
    DtypeOption,
    TargetOption,
    ThreadsOption,
    VerificationOption,
)
from dspark.cli.outputs import claim
from dspark.core import DEFAULT_RULE
from dspark.errors import ConfigError
from dspark.fetching.known import DEFAULT_TARGET

# Options that say nothing where nothing is counted.
OF_ROUNDS = ("data", "whole", "limit", "temperature", "verification", "target", "dtype", "threads")


def command(
    ctx: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Folder of a run or of a drafter, with NAME= in front to name it. The others are "
            "compared with the first.",
            show_default=False,
        ),
    ],
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the figures here (dspark.runs/1, dspark.rounds/1)."),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="What the runs differ in, for `dspark report`.")
    ] = None,
    rounds: Annotated[
        bool,
        typer.Option(
            "--rounds", help="Count the rounds of held-out answers exactly; shipped names too."
        ),
    ] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(help="With --rounds: answers of the target, .jsonl or .jsonl.gz; repeatable."),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="With --rounds: all answers of the files, not just held-out ones."
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --rounds: answers in all, domains in turn.")
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(min=0, max=100, help="With --rounds: repeatable. Default: 0 and 1."),
    ] = None,
    verification: VerificationOption = DEFAULT_RULE,
    target: TargetOption = DEFAULT_TARGET,
    dtype: DtypeOption = DEFAULT_DTYPE,
    threads: ThreadsOption = None,
) -> None:
    """Put training runs side by side, from what they left on disk; nothing is evaluated.

    Held-out figures are teacher-forced, on the answers that each run held out itself: they rank
    drafters of one kind and are not what an engine reaches, which `dspark eval` measures.

    With --rounds the models run, but nothing is decoded: along the text of each held-out answer
    the expected number of rounds is counted exactly, for all drafters on the same answers, which
    tells apart what differs by a per cent. With --json, finished answers are kept beside the file;
    run again to resume.

    Examples:

        dspark compare runs/base runs/depth3

        dspark compare base=runs/a/drafter runs/b --study depth --json results/runs_depth.json

        dspark compare --rounds dspark eagle3 runs/mine --data answers.jsonl.gz --limit 40
    """
    if rounds:
        from dspark.cli.compare_rounds import Asked, compare_rounds

        temperatures = tuple(dict.fromkeys(temperature or (0.0, 1.0)))
        asked = Asked(runs, data or [], whole, limit, temperatures, verification, study)
        return compare_rounds(asked, target, dtype, threads, json_file)
    _refuse_strays(ctx)
    from dspark.evaluation.compare import SCHEMA, hashes, side_by_side
    from dspark.evaluation.runs import find_runs, read_run

    places = find_runs(runs)
    claim(json_file)
    found = [read_run(name, folder) for name, folder in places]
    result = side_by_side(found, study)
    if json_file is not None:
        record = provenance("dspark compare") | {"inputs": hashes(found)}
        write_artifact(json_file, SCHEMA, result, record)
    console = Console(highlight=False)
    for table in (drafters_table, training_table, held_out_table):
        console.print(table(result))
    for line in result["warnings"]:
        print(f"dspark: warning: {line}", file=sys.stderr)


def _refuse_strays(ctx: typer.Context) -> None:
    """Refuse options that mean something only with --rounds.

    Raises:
        ConfigError: naming the first of them.
    """
    for name in OF_ROUNDS:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = next(p.opts[0] for p in ctx.command.params if p.name == name)
            raise ConfigError(f"{option} is for counting rounds", fix="Add --rounds")


def drafters_table(result: dict[str, Any]) -> Table:
    """What each run trained."""
    table = Table(title=escape(result["study"] or "runs"))
    table.add_column("run", overflow="fold")
    table.add_column("kind")
    for heading in ("layers", "block", "head", "vocabulary", "parameters"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        head, size = row["markov_head_type"], row["draft_vocab_size"]
        table.add_row(
            escape(row["name"]),
            escape(row["kind"]),
            str(row["num_layers"]),
            str(row["block_size"]),
            f"{head} {row['markov_rank']}" if head else "-",
            f"{size:,d}" if size else "all",
            _count(row["parameters"]),
        )
    return table


def training_table(result: dict[str, Any]) -> Table:
    """What each run took, and the keys in which its recipe differs from the first's."""
    rows = result["rows"]
    devices = list(dict.fromkeys(row["device"] or "a CPU" for row in rows))
    table = Table(title=escape(f"training on {' and '.join(devices)}"))
    table.add_column("run", overflow="fold")
    if len(devices) > 1:
        table.add_column("device")
    for heading in ("minutes", "steps", "anchors", "answers"):
        table.add_column(heading, justify="right")
    table.add_column(escape(f"differs from {rows[0]['name']}"), overflow="fold")
    for row in rows:
        table.add_row(
            escape(row["name"]),
            *([escape(row["device"] or "a CPU")] if len(devices) > 1 else []),
            f"{row['minutes']:.1f}",
            *(_count(row[key]) for key in ("steps", "anchors", "answers")),
            escape("\n".join(f"{key}={json.dumps(v)}" for key, v in row["differs"].items())),
        )
    return table


def held_out_table(result: dict[str, Any]) -> Table:
    """Each run's last held-out measure."""
    table = Table(title="held out (teacher-forced, each run's own answers)")
    table.add_column("run", overflow="fold")
    table.add_column("accepted_length", justify="right")
    table.add_column("acceptance by slot")
    for row in result["rows"]:
        slots = ("-" if share is None else f"{share:.2f}" for share in row["acceptance"])
        table.add_row(escape(row["name"]), f"{row['accepted_length']:.3f}", " ".join(slots))
    return table


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,d}"
