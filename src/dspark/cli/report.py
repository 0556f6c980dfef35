"""`dspark report`: tables and figures from result files, as one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dspark.cli.outputs import claim

DEFAULT_RESULTS = Path("results")


def command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Result files, and folders that hold some. Default: results."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and its pictures.")] = Path(
        "report"
    ),
    temperature: Annotated[
        float | None,
        typer.Option(help="The one figures show; unset takes 1, or else the highest measured."),
    ] = None,
) -> None:
    """Draw the tables and figures of result files into one page that works offline.

    Reads every result file that dspark writes: evaluations and studies, calibration checks, speeds,
    loads, costs, audits, soaks, training logs and profiles. What has not been measured yet is
    listed with the command that measures it. Prints the page's path.

    Examples:

        dspark report

        dspark report results/ runs/dspark/train_log.jsonl --out report --temperature 0
    """
    from dspark.reporting.report import PAGE, run

    claim(out / PAGE)
    page, notes = run(paths or [DEFAULT_RESULTS], out, temperature)
    for note in notes:
        print(note, file=sys.stderr)
    print(page)
