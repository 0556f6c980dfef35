"""`dspark profile`: measure what a round costs on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dspark.api.names import find_drafter
from dspark.cli.common import (
    DEFAULT_DRAFTER,
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    DrafterOption,
    DtypeOption,
    TargetOption,
    ThreadsOption,
    WeightsOption,
    load_models,
)
from dspark.cli.outputs import claim
from dspark.errors import ConfigError
from dspark.fetching.known import DEFAULT_TARGET

if TYPE_CHECKING:
    from dspark.tables.cost import CostTable

SECONDS = 30.0  # that it takes unless told to be thorough


def command(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = DEFAULT_DRAFTER,
    users: Annotated[int, typer.Option(min=1, help="Most requests in a batch.")] = 64,
    context: Annotated[int, typer.Option(min=1, help="Cache positions of each request.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each size, at most.")] = 9,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="All repeats, however long they take.")
    ] = False,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the table here too (dspark.cost/1)."),
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it into this PNG.")] = None,
) -> None:
    """Measure draft and verify time over batch sizes, for the adaptive policies, in half a minute.

    The table is kept where the other verbs find it. It holds for this machine, these threads,
    this target, dtype and drafter. The policy auto does with less, measured on its own. Let nothing
    else run meanwhile.

    Examples:

        dspark profile

        dspark profile --users 16 --context 512 --plot cost.png

        dspark profile --thorough
    """
    folder = find_drafter(drafter, target)
    if folder is None:
        raise ConfigError("There is nothing to schedule without a drafter", fix="Name a drafter")
    claim(json_file, plot)
    from dspark.artifacts import provenance
    from dspark.engine.tables import cost_key, default_path
    from dspark.profiling.costs import measure

    model, draft_model = load_models(target, drafter, dtype, threads, weights)
    key = cost_key(model, draft_model)
    with Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} repeats"),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    ) as bar:
        task = bar.add_task("", total=repeats)
        table = measure(
            model,
            draft_model,
            key,
            users=users,
            context=context,
            repeats=repeats,
            seconds=None if thorough else SECONDS,
            on_repeat=lambda done, all_: bar.update(task, completed=done),
        )
    record = provenance("dspark profile", {}, [folder])
    console = Console(highlight=False)
    console.print(_shown(table))
    if json_file is not None:
        table.save(json_file, record)
    if plot is not None:
        from dspark.reporting.cost_plot import draw

        draw(table, plot)
    place = default_path(key)  # last: a full cache disk leaves the others as they are
    table.save(place, record)
    console.print(f"kept in {place}", markup=False, soft_wrap=True)


def _shown(table: CostTable) -> Table:
    """The measured points as a table."""
    key = table.key
    shown = Table(title=escape(f"{key.target}, {key.dtype}, {key.threads} threads"))
    for heading in ("batch tokens", "verify ms", "a token ms"):
        shown.add_column(heading, justify="right")
    for tokens, seconds in table.verify:
        shown.add_row(str(tokens), f"{1e3 * seconds:.2f}", f"{1e3 * seconds / tokens:.2f}")
    shown.add_section()
    for slots, points in table.short:
        for requests, seconds in points:
            shown.add_row(f"draft {slots} for {requests}", f"{1e3 * seconds:.2f}", "")
        shown.add_section()
    for requests, seconds in table.draft:
        shown.add_row(f"draft all for {requests}", f"{1e3 * seconds:.2f}", "")
    return shown
