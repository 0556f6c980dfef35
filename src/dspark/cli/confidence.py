"""`dspark confidence`: a confidence head fitted to the drafter's own rounds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark.api.names import find_drafter
from dspark.artifacts import find_data, provenance, sha256_file, write_artifact
from dspark.cli.common import (
    DEFAULT_DRAFTER,
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    BadRowsOption,
    DrafterOption,
    DtypeOption,
    LongestAnswerOption,
    SlotsOption,
    TargetOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    VerificationOption,
    WeightsOption,
    load_models,
    passing_bar,
    say_bad_rows,
)
from dspark.cli.outputs import claim
from dspark.core import DEFAULT_RULE, SamplingParams
from dspark.errors import ConfigError
from dspark.fetching.known import DEFAULT_TARGET


def command(
    data: Annotated[list[str], typer.Option(help="Prompt file, .jsonl or .jsonl.gz; repeatable.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="Answers trained on: of the prompts those with their ids; repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Files whose prompts are left out, by their ids; repeatable."),
    ] = None,
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = DEFAULT_DRAFTER,
    temperature: Annotated[float, typer.Option(help="Above 0: greedy drafts draw nothing.")] = 1.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    verification: VerificationOption = DEFAULT_RULE,
    max_new_tokens: LongestAnswerOption = 256,
    rounds: Annotated[
        int, typer.Option(min=1, help="To fit and judge with; each takes some 10 KB of memory.")
    ] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Decides prompts, draws, first weights.")] = 0,
    slots: SlotsOption = 32,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    bad_rows: BadRowsOption = "stop",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write figures here (dspark.confidence_fit/1)."),
    ] = None,
) -> None:
    """Fit a confidence head to the drafter's own rounds, for drafts above temperature 0.

    It sees what the trained head sees, and besides it how spread the draft's distributions are and
    how likely the tokens drawn so far were. It is written beside the drafter's weights, which stay
    as they are. Calibrate afterwards, with prompts that are not used here. To be without it, delete
    confidence.head and calibration.json and calibrate again. Run again after an interruption to
    go on.

    Examples:

        dspark confidence --data prompts.jsonl --only answers.jsonl.gz

        dspark confidence --data prompts.jsonl --rounds 20000 --json results/confidence.json
    """
    if temperature <= 0:
        raise ConfigError(
            "Greedy drafts draw nothing that an informed head could see",
            found=f"--temperature {temperature:g}",
            fix="Use a temperature above 0; the trained head speaks for greedy drafts",
        )
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens
    )
    folder = find_drafter(drafter, target)
    if folder is None:
        raise ConfigError("There is no head to fit without a drafter", fix="Name a drafter")
    from dspark.calibration import collect, confidence
    from dspark.calibration.prompts import choose_prompts
    from dspark.data.bad_rows import BadRows
    from dspark.drafters.checkpoint import WEIGHTS, load_calibration
    from dspark.drafters.dspark.informed import FILE, save_informed
    from dspark.tables.calibration import FILE as CALIBRATION

    claim(folder / CALIBRATION, folder / FILE, json_file)  # the first one, as `calibrate` does
    sources, kept, excluded = (
        [find_data(name) for name in names or []] for names in (data, only, exclude)
    )
    skipped = BadRows(bad_rows)
    prompts = choose_prompts(sources, excluded, seed=seed, only=kept, bad_rows=skipped)
    say_bad_rows(skipped)
    model, draft_model = load_models(target, drafter, dtype, threads, weights)
    file = folder / WEIGHTS
    sha256 = sha256_file(file)
    table = load_calibration(folder, sha256)
    identity = {"drafter": sha256, "target": target, "dtype": model.precision}
    identity |= {"verification": verification}
    parts = collect.part_file(prompts, params, seed, **identity).with_suffix(".clues")
    claim(parts / "rounds")
    with passing_bar() as bar:
        task = bar.add_task("starting", total=rounds)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{done} of {total} {what}", completed=done, total=total)

        try:
            head, result = confidence.run(
                model,
                draft_model,
                prompts,
                params,
                parts,
                rounds=rounds,
                slots=slots,
                seed=seed,
                verification=verification,
                on_progress=lambda now: show("rounds", now.fit_rounds, rounds),
                on_step=lambda done, steps: show("steps of the fit", done, steps),
                bad_rows=skipped,
            )
        except KeyboardInterrupt:
            bar.print("finished answers are kept; run again to resume")
            raise
    say_bad_rows(skipped)
    record = provenance("dspark confidence", {"seed": seed}, [*sources, *kept, *excluded, file])
    if table is not None:  # before the head, since a table without entries goes with any
        table.greedy_only().save(folder / CALIBRATION, record)
    about = {name: value for name, value in result.items() if name != "positions"}
    notes = {"about": json.dumps(about), "provenance": json.dumps(record)}
    path = save_informed(head, folder, file, notes)
    if json_file is not None:
        write_artifact(json_file, confidence.SCHEMA, result, record)
    shutil.rmtree(parts, ignore_errors=True)
    console = Console(highlight=False)
    console.print(figures(result))
    console.print(escape(f"written to {path}"), soft_wrap=True)
    print("now run `dspark calibrate` with prompts that were not used here")


def figures(result: dict[str, Any]) -> Table:
    """The figures as a table, a row a position and one for the means."""
    title = f"{result['target']}, temperature {result['temperature']:g}: {result['rounds']} rounds "
    title += f"of {result['prompts']} prompts, fitted on {result['fit_rounds']} others"
    shown = Table(title=escape(title))
    for heading in ("slot", "rounds", "accepted", "AUROC linear", "informed"):
        shown.add_column(heading, justify="right")
    for row in result["positions"]:
        scores = (f"{row[name]:.3f}" for name in ("auroc_linear", "auroc"))
        shown.add_row(str(row["k"]), str(row["rounds"]), f"{row['base_rate']:.1%}", *scores)
    shown.add_section()
    means = (f"{result[name]:.3f}" for name in ("auroc_linear_mean", "auroc_mean"))
    shown.add_row("mean", "", "", *means)
    return shown
