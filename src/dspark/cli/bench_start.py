"""`dspark bench start`: how long a start takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark.api.names import find_drafter, resolve_name
from dspark.cli.common import (
    DEFAULT_DRAFTER,
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    DrafterOption,
    DtypeOption,
    TargetOption,
    ThreadsOption,
    WeightsOption,
    passing_bar,
)
from dspark.cli.outputs import claim
from dspark.fetching.known import DEFAULT_TARGET, KNOWN_TARGETS
from dspark.targets.names import resolve_target


def command(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = DEFAULT_DRAFTER,
    times: Annotated[int, typer.Option(min=1, help="Runs of each that count.")] = 5,
    prompt: Annotated[
        str, typer.Option("--prompt", help="What `generate` is asked.")
    ] = "Why is the sky blue?",
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here (dspark.start/1).")
    ] = None,
) -> None:
    """Time starts: the first token of `generate`, a server that is ready, `doctor`.

    Each is a fresh process, several times, in turn. The first run of each fills caches and is
    shown apart.

    Examples:

        dspark bench start --json results/start.json

        dspark bench start --weights int8 --times 9
    """
    claim(json_file)
    if target not in KNOWN_TARGETS:
        resolve_target(target)
    drafter = resolve_name(drafter, target)
    find_drafter(drafter, target)
    from dspark.artifacts import provenance, write_artifact
    from dspark.evaluation import start

    models = ["--target", target, "--drafter", drafter, "--dtype", dtype, "--weights", weights]
    if threads:
        models += ["--threads", str(threads)]
    ways = start.ways(prompt, models)
    with passing_bar(auto_refresh=False) as bar:
        task = bar.add_task("starting", total=len(ways) * (times + 1))

        def show(name: str, run: int) -> None:
            bar.update(task, description=f"{name}, run {run}/{times}", advance=1, refresh=True)

        rows = start.measure(ways, times, show)
    named = Path(target).name if Path(target).is_dir() else target
    facts: dict[str, Any] = {
        "target": named,
        "drafter": Path(drafter).name,
        "dtype": dtype,
        "weights": weights,
    }
    facts |= {"threads": threads, "times": times, "rows": rows}
    Console(highlight=False).print(_shown(facts))
    if json_file is not None:
        write_artifact(json_file, start.SCHEMA, facts, provenance("dspark bench start"))


def _shown(facts: dict[str, Any]) -> Table:
    title = f"{facts['target']}, {facts['drafter']}, {facts['dtype']}, weights {facts['weights']}"
    table = Table(title=escape(title), caption=f"medians of {facts['times']}, and their range")
    for heading in ("start", "until", "first run, s", "median, s", "range, s"):
        table.add_column(heading, justify="right" if heading.endswith(", s") else "left")
    for row in facts["rows"]:
        span = f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}"
        figures = f"{row['first_s']:.2f}", f"{row['median_s']:.2f}", span
        table.add_row(row["way"], row["what"], *figures)
    return table
