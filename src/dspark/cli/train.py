"""`dspark train`: train a drafter from a configuration file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from dspark.artifacts import provenance
from dspark.cli.checks import read_recipe
from dspark.cli.outputs import claim
from dspark.config import TrainConfig
from dspark.training.board import Board


def command(
    config: Annotated[
        Path,
        typer.Option("--config", help="Recipe, a TOML file; see configs/.", show_default=False),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key of the recipe, as section.key=value."),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Go on from this drafter's weights: shipped name, drafter's folder or run's.",
        ),
    ] = None,
    bad_rows: Annotated[
        str | None,
        typer.Option(
            "--bad-rows",
            metavar="stop|skip",
            help="Rows that are no answers, as data.bad_rows: stop at the first, or skip and "
            "count them.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Run a few steps and print where their time goes.")
    ] = False,
    profile_steps: Annotated[
        int, typer.Option("--profile-steps", min=1, help="Steps that --profile runs.")
    ] = 12,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the held-out result as one JSON object.")
    ] = False,
) -> None:
    """Train a drafter on answers of its own target; run again to resume.

    Ctrl-C saves the state first. Logs, checkpoints and the drafter lie in the recipe's `out`.
    With --from it begins with a finished drafter's weights, and what the recipe asks for beyond
    them (layers, another head, ranks) adds nothing at first. Resumed, it goes on from its own.
    Under `accelerate launch` or `torchrun`, processes share the sequences of each step.

    Examples:

        dspark train --config configs/smollm2-135m-dspark.toml

        dspark train --config configs/smollm2-135m-dspark.toml --set run.minutes=10 \\
            --set out=runs/short

        dspark train --config configs/smollm2-135m-gpu-dspark.toml --from dspark --set out=runs/more

        dspark train --config configs/smollm2-135m-dspark.toml --profile
    """
    chosen = [] if bad_rows is None else [f"data.bad_rows={bad_rows}"]
    chosen += [] if from_ is None else [f"drafter.start={json.dumps(from_)}"]
    loaded = read_recipe(config, [*(set_ or []), *chosen])
    from dspark.training.parallel import Parallel

    parallel = Parallel()
    if profile:
        from dspark.training import profile as profiling

        found = profiling.profile_steps(loaded, profile_steps)
        if parallel.is_main:
            _print_profile(found, as_json, config)
        parallel.close()
        return
    from dspark.training.log import LOG
    from dspark.training.trainer import run

    if parallel.is_main:
        claim(Path(loaded.out) / LOG)
    with _Display(loaded, quiet=not parallel.is_main) as display:
        _, measured = run(loaded, display.show)
    if parallel.is_main:
        _print_end(measured, as_json, Path(loaded.out))
    parallel.close()


def _print_end(measured: dict[str, Any], as_json: bool, out: Path) -> None:
    if as_json:
        print(json.dumps(measured))
    else:
        length = measured.get("accepted_length")
        print(f"drafter in {out / 'drafter'}, held-out accepted_length {length}")


class _Display:
    """Progress bar and TensorBoard, fed by the trainer's records."""

    def __init__(self, config: TrainConfig, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, quiet=quiet)
        self.bar = Progress(
            BarColumn(bar_width=10),
            # A narrow terminal cuts the description; it ends with what one can best do without.
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(min_width=4)),
            TimeElapsedColumn(table_column=Column(min_width=7)),
            TimeRemainingColumn(table_column=Column(min_width=7)),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            console=self.console,
        )
        self.task = self.bar.add_task("loading target and answers", total=1.0)
        self.board = Board(Path(config.out) / "tensorboard", self.say)

    def __enter__(self) -> _Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        self.board.close()

    def say(self, line: str) -> None:
        """A line above the bar."""
        self.console.print(f"dspark: note: {line}", markup=False, highlight=False, soft_wrap=True)

    def show(self, record: dict[str, Any]) -> None:
        """One record: a line of the bar, scalars of the board."""
        if record["kind"] == "data":
            line = "; ".join(f"{count} x {reason}" for reason, count in record["dropped"].items())
            self.bar.print(f"answers not learned from, or not whole: {line}", markup=False)
            return
        slots = " ".join(f"{a:.2f}" for a in record.get("acceptance", []))
        length = record.get("accepted_length", float("nan"))
        text = f"accepted_length {length:.2f}  slots {slots}"
        if record["kind"] == "train":
            rate = record["anchors_per_s"]
            speed = "" if rate is None else f"  {rate:.0f} anchors/s"
            self.bar.update(
                self.task,
                completed=record["progress"],
                description=f"loss {record['loss']:.2f}{speed}  {text}",
            )
        else:
            self.bar.print(f"{record['minutes']:.1f} min, step {record['step']}, held out: {text}")
        self.board.add(record)


def _print_profile(result: dict[str, Any], as_json: bool, config: Path) -> None:
    if as_json:
        from dspark.training.profile import SCHEMA

        record = provenance("dspark train --profile", {}, [config])
        print(json.dumps({"schema": SCHEMA, "provenance": record, **result}))
        return
    print(
        f"{result['anchors_per_s']:.0f} anchors/s with states in memory, "
        f"{result['anchors_per_s_first_pass']:.0f} on the first pass; "
        f"peak memory {result['peak_gib']:.2f} GiB"
    )
    for title, rows in (("phase", result["phases"]), ("operation", result["operations"])):
        print(f"\n{title:<60} ms a step   share")
        for row in rows:
            print(f"{row['name'][:60]:<60} {row['ms']:9.1f}  {row['share']:6.1%}")
