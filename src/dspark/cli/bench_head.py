"""`dspark bench head`: what the sequential head costs in a round."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark.api.names import named_drafters, resolve_name
from dspark.artifacts import provenance, write_artifact
from dspark.cli.common import (
    DEFAULT_DRAFTER,
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    BadRowsOption,
    DtypeOption,
    PromptsOption,
    TargetOption,
    ThreadsOption,
    WeightsOption,
    load_models,
    say_bad_rows,
)
from dspark.cli.outputs import claim
from dspark.fetching.known import DEFAULT_TARGET


def command(
    target: TargetOption = DEFAULT_TARGET,
    drafter: Annotated[
        list[str] | None,
        typer.Option("--drafter", help="Shipped name or checkpoint folder; repeatable."),
    ] = None,
    data: PromptsOption = None,
    rounds: Annotated[
        int, typer.Option(min=3, help="Rounds with and without each head, while prompts last.")
    ] = 200,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    bad_rows: BadRowsOption = "stop",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here (dspark.head_cost/1).")
    ] = None,
) -> None:
    """Time rounds with and without the drafter's heads, in turn.

    Examples:

        dspark bench head --json results/head_cost.json

        dspark bench head --drafter runs/block4/drafter --drafter runs/block12/drafter
    """
    names = [resolve_name(name, target) for name in drafter or [DEFAULT_DRAFTER]]
    folders = [folder for _, folder in named_drafters(names, target)]
    from dspark.data.bad_rows import BadRows
    from dspark.data.prompt_rows import all_prompt_ids

    claim(json_file)
    from dspark.data.prompts import spread_prompts
    from dspark.evaluation import head_cost
    from dspark.targets.names import portable_name

    skipped = BadRows(bad_rows)
    prompts = spread_prompts(data, bad_rows=skipped)
    say_bad_rows(skipped)
    rows, used = [], dtype
    for name in names:
        model, draft_model = load_models(target, name, dtype, threads, weights)
        used = model.precision
        left = BadRows(bad_rows)
        ids = [ids for _, ids in all_prompt_ids(model, prompts, left)]
        say_bad_rows(left)
        row = head_cost.measure(model, draft_model, ids, rounds)
        rows.append({"drafter": Path(name).name if Path(name).is_dir() else name, **row})
    table = Table(title=escape(f"{target}, {used}"))
    for heading in ("drafter", "block size", "head", "round ms", "head ms", "confidence ms"):
        table.add_column(heading, justify="left" if heading in ("drafter", "head") else "right")
    table.add_column("head's share", justify="right")
    for row in rows:
        times = [f"{row[key]:.2f}" for key in ("round_ms", "head_ms", "confidence_ms")]
        kind = str(row["markov_head_type"])
        cells = [escape(row["drafter"]), str(row["block_size"]), kind, *times]
        table.add_row(*cells, f"{row['share']:.1%}")
    Console(highlight=False).print(table)
    if json_file is not None:
        record = provenance("dspark bench head", {}, folders)
        result = {"target": portable_name(target), "rows": rows}
        write_artifact(json_file, head_cost.SCHEMA, result, record)
