"""`dspark store`: keep the target's hidden states on disk, for training runs to read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dspark.cli.checks import read_recipe
from dspark.cli.outputs import claim


def command(
    config: Annotated[
        Path,
        typer.Option("--config", help="Recipe, a TOML file; see configs/.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the store.", show_default=False)],
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print how large it would be, and stop.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key of the recipe, as section.key=value."),
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
) -> None:
    """Write the target's states for all answers of a recipe; run again to resume.

    Training with `--set data.store=FOLDER` reads them and gives the same result as without.
    Finished files are kept when the work is interrupted.

    Examples:

        dspark store --config configs/smollm2-135m-dspark.toml --out stores/smollm2 --estimate

        dspark store --config configs/smollm2-135m-dspark.toml --out stores/smollm2

        dspark train --config configs/smollm2-135m-dspark.toml --set data.store=stores/smollm2
    """
    chosen = [] if bad_rows is None else [f"data.bad_rows={bad_rows}"]
    loaded = read_recipe(config, [*(set_ or []), *chosen])
    from dspark.data.store import INDEX
    from dspark.training.setup import dropped_line
    from dspark.training.store import make_plan, write_store

    if not estimate:
        claim(out / INDEX)
    plan = make_plan(loaded)
    if plan.dropped:
        line = dropped_line(plan.dropped)
        print(f"dspark: note: answers left out, or not whole: {line}", file=sys.stderr)
    count, files = len(plan.responses), len(plan.shards)
    if estimate:
        print(f"{count} sequences, about {_size(plan.bytes)} in {files} files")
        return
    bar = Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.completed} of {task.total} sequences"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
    )
    with bar:
        task = bar.add_task("", total=count)
        written = write_store(plan, out, lambda done: bar.update(task, completed=done))
    print(f"{out}: {count} sequences, {_size(written)} in {files} files")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
