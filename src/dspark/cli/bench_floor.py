"""`dspark bench floor`: plain decoding against the time that reading the weights takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dspark.cli.common import (
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    DtypeOption,
    TargetOption,
    ThreadsOption,
    WeightsOption,
    load_models,
)
from dspark.cli.outputs import claim
from dspark.fetching.known import DEFAULT_TARGET


def command(
    target: TargetOption = DEFAULT_TARGET,
    prompt: Annotated[
        str, typer.Option("--prompt", help="What the measured request asks.")
    ] = "Explain why the sky is blue.",
    steps: Annotated[int, typer.Option(min=4, help="Steps to time.")] = 60,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here (dspark.floor/1).")
    ] = None,
) -> None:
    """Time plain decoding of one user beside readings of memory, in turn.

    A step cannot be faster than reading every weight once; the table says how near it comes and
    where the rest of the time goes.

    Examples:

        dspark bench floor --json results/floor.json

        dspark bench floor --dtype float32 --threads 1
    """
    claim(json_file)
    from dspark.artifacts import provenance, write_artifact
    from dspark.evaluation import floor
    from dspark.targets.names import portable_name

    model, _ = load_models(target, "none", dtype, threads, weights)
    found = floor.measure(model, model.encode(prompt), steps)
    console = Console(highlight=False)
    console.print(
        f"{escape(target)}, {model.precision}: a step takes {found['step_ms']:.1f} ms, "
        f"{found['ratio']:.2f} times the floor of {found['floor_ms']:.1f} ms "
        f"({found['weight_mib']:.0f} MiB of weights at {found['read_gb_s']:.1f} GB/s)"
    )
    for row in found["shares"]:
        console.print(f"{row['share']:6.1%}  {row['name']}")
    if json_file is not None:
        result = {"target": portable_name(target), "dtype": model.precision, **found}
        write_artifact(json_file, floor.SCHEMA, result, provenance("dspark bench floor", {}, []))
