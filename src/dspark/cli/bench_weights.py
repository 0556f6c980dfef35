"""`dspark bench weights`: what weights of eight bits cost and gain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark.api.names import find_drafter
from dspark.cli.bench_peers import table as speeds
from dspark.cli.common import (
    DEFAULT_DTYPE,
    BadRowsOption,
    DrafterOption,
    DtypeOption,
    PolicyOption,
    TargetOption,
    ThreadsOption,
    passing_bar,
    say_bad_rows,
)
from dspark.cli.outputs import claim
from dspark.fetching.known import DEFAULT_TARGET

if TYPE_CHECKING:
    from dspark.data.responses import Response
    from dspark.evaluation.weights import Kept


def command(
    data: Annotated[
        list[str],
        typer.Option("--data", help="Answers to predict, as `dspark regenerate` writes them."),
    ],
    limit: Annotated[
        int, typer.Option(min=1, help="Answers to predict, the first so many of all files.")
    ] = 40,
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = "none",
    policy: PolicyOption = None,
    prompts: Annotated[
        int, typer.Option(min=2, help="With --drafter: bundled prompts; the first warms up.")
    ] = 12,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="With --drafter: longest answer in tokens.")
    ] = 128,
    dtype: DtypeOption = DEFAULT_DTYPE,
    threads: ThreadsOption = None,
    bad_rows: BadRowsOption = "stop",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here (dspark.weights/1).")
    ] = None,
) -> None:
    """Compare weights of eight bits with the target's own: size, predictions, speed.

    Both predict the tokens of the same answers; take some that no drafter was trained on. With
    --drafter both also answer bundled prompts in turn, plain and drafted.

    Examples:

        dspark bench weights --data heldout.jsonl --json results/weights.json

        dspark bench weights --data heldout.jsonl --limit 100 --drafter dspark --prompts 20
    """
    claim(json_file)
    folder = find_drafter(drafter, target)
    import torch

    from dspark.api.models import best_device
    from dspark.artifacts import provenance, write_artifact
    from dspark.data.bad_rows import BadRows
    from dspark.data.files import find_data
    from dspark.data.responses import load_responses
    from dspark.evaluation import weights
    from dspark.targets.names import portable_name

    files = [find_data(name) for name in data]
    if threads:
        torch.set_num_threads(threads)
    both = weights.load_both(target, dtype, best_device())
    skipped = BadRows(bad_rows)
    answers = load_responses(files, both[0].target.max_positions, bad_rows=skipped)[:limit]
    say_bad_rows(skipped)
    facts = {
        "target": portable_name(target),
        "dtype": both[0].target.dtype_name,
        "threads": torch.get_num_threads(),
        **_compared(both, answers),
        "max_new_tokens": max_new_tokens,
        "rows": [] if folder is None else _timed(both, folder, policy, prompts, max_new_tokens),
    }
    console = Console(highlight=False)
    console.print(_shown(facts))
    if facts["rows"]:
        console.print(speeds(facts))
    if json_file is not None:
        record = provenance("dspark bench weights", {}, [*files, *([folder] if folder else [])])
        write_artifact(json_file, weights.SCHEMA, facts, record)


def _compared(both: tuple[Kept, Kept], answers: list[Response]) -> dict[str, Any]:
    """`weights.compare` with a bar on standard error."""
    from dspark.evaluation import weights

    with passing_bar() as bar:
        task = bar.add_task("predicting answers", total=len(answers))
        return weights.compare(*both, answers, lambda done: bar.update(task, completed=done))


def _timed(
    both: tuple[Kept, Kept], folder: Path, policy: str | None, count: int, longest: int
) -> list[dict[str, Any]]:
    """`weights.time_both` on bundled prompts, with a bar on standard error."""
    from dspark.core import SamplingParams
    from dspark.data.prompts import spread_prompts
    from dspark.evaluation import weights

    ids = [both[0].target.encode_messages(p.messages) for p in spread_prompts(None, count)]
    params = SamplingParams(max_new_tokens=longest)
    with passing_bar() as bar:
        task = bar.add_task("starting", total=len(ids))

        def show(way: str, done: int, all_: int) -> None:
            bar.update(task, completed=done, description=f"prompt {done + 1}/{all_}, {way}")

        return weights.time_both(*both, folder, policy, ids, params, show)


def _shown(facts: dict[str, Any]) -> Table:
    """Sizes and predictions as a table."""
    title = f"{facts['target']}, {facts['dtype']}, {facts['tokens']} tokens of "
    title += f"{facts['answers']} answers"
    caption = f"likeliest token the same at {facts['same_choice']:.2%} of the places, "
    caption += f"mean KL {facts['mean_kl']:.5f} nats"
    shown = Table(title=escape(title), caption=caption)
    for heading in ("weights", "kernels", "MiB", "perplexity"):
        shown.add_column(heading, justify="right" if heading in ("MiB", "perplexity") else "left")
    for name in ("same", "int8"):
        row = facts[name]
        cells = f"{row['weights_mib']:.1f}", f"{row['perplexity']:.4f}"
        shown.add_row(name, row["kernels"], *cells)
    return shown
