"""`dspark bench`: measurements of this machine, one sub-verb each."""

from __future__ import annotations

import typer

from dspark.cli import (
    bench_floor,
    bench_head,
    bench_kernels,
    bench_load,
    bench_peers,
    bench_serve,
    bench_start,
    bench_weights,
)
from dspark.cli.checks import checked

HELP = """Measure speed on this machine.

Example:

    dspark bench head --json results/head_cost.json
"""

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback(help=HELP)
def _group() -> None: ...  # makes `head` a sub-verb even while it is the only one


app.command("floor")(checked(bench_floor.command))
app.command("head")(checked(bench_head.command))
app.command("kernels")(checked(bench_kernels.command))
app.command("load")(checked(bench_load.command))
app.command("peers")(checked(bench_peers.command))
app.command("serve")(checked(bench_serve.command))
app.command("start")(bench_start.command)
app.command("weights")(checked(bench_weights.command))
