"""`dspark eval`: judge drafters on prompt files."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dspark.api.names import named_drafters
from dspark.cli.common import (
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    BadRowsOption,
    DraftersOption,
    DtypeOption,
    LongestAnswerOption,
    PolicyOption,
    SlotsOption,
    TargetOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    VerificationOption,
    WeightsOption,
    load_models,
    say_bad_rows,
)
from dspark.cli.outputs import beside, claim
from dspark.core import DEFAULT_RULE
from dspark.errors import DataError
from dspark.fetching.known import DEFAULT_TARGET

if TYPE_CHECKING:
    from dspark.data.bad_rows import BadRows
    from dspark.evaluation.cells import Dataset
    from dspark.evaluation.evaluate import Progress as State


def command(
    data: Annotated[
        list[str],
        typer.Option("--data", help="Prompt file, or owner/name[:split] of a dataset; repeatable."),
    ],
    target: TargetOption = DEFAULT_TARGET,
    drafter: DraftersOption = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", help="0 is greedy; repeatable. Default: 0."),
    ] = None,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    max_new_tokens: LongestAnswerOption = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts' own seeds.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Prompts of each data file, the first so many.")
    ] = None,
    slots: SlotsOption = 16,
    policy: PolicyOption = None,
    verification: VerificationOption = DEFAULT_RULE,
    threshold: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Also judge under the policy threshold:P; repeatable."),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="What the run is about, for the report: a free word.")
    ] = None,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    bad_rows: BadRowsOption = "stop",
    trace: Annotated[
        Path | None, typer.Option(help="Write every round here, JSON lines (dspark.trace/1).")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the figures here (dspark.eval/1); resumable."),
    ] = None,
) -> None:
    """Judge drafters: accepted length, acceptance by position and speed on prompt files.

    Without --policy whole blocks are verified, since acceptance is judged slot by slot; speeds as
    users get them are those of --policy auto. With --json, finished parts are kept beside the file;
    run again to resume.

    Examples:

        dspark eval --data eval/gsm8k.jsonl --limit 40

        dspark eval --data eval/gsm8k.jsonl --data eval/mbpp.jsonl --temperature 0 --temperature 1
        --drafter a=runs/a/drafter --drafter b=runs/b/drafter --json results/ab.json

        dspark eval --data eval/alpaca.jsonl --temperature 1 --threshold 0.5 --threshold 0.9
    """
    from dspark.artifacts import provenance, write_artifact
    from dspark.data.bad_rows import BadRows
    from dspark.evaluation import evaluate
    from dspark.evaluation.cells import Settings, load_contender
    from dspark.evaluation.trace import TraceFile

    claim(json_file, trace)
    temperatures, thresholds = tuple(temperature or [0.0]), tuple(threshold or [])
    settings = Settings(
        temperatures,
        top_p,
        top_k,
        max_new_tokens,
        seed,
        slots,
        policy,
        thresholds,
        verification=verification,
    )
    skipped = BadRows(bad_rows)
    datasets, files = _datasets(data, limit, skipped)
    say_bad_rows(skipped)
    places = named_drafters(drafter, target)
    record = provenance("dspark eval", {"seed": seed}, [*files, *(at for _, at in places)])
    rounds = None if trace is None else TraceFile(trace, record)
    model, _ = load_models(target, "none", dtype, threads, weights)
    contenders = [
        load_contender(folder, model, label, policy, slots, verification)
        for label, folder in places
    ]
    cells = beside(json_file, ".cells.jsonl")
    with _Bar() as bar:
        try:
            result = evaluate.run(
                model,
                contenders,
                datasets,
                settings,
                cells_path=cells,
                trace=rounds,
                on_progress=bar.show,
                warn=bar.say,
                bad_rows=skipped,
            )
        except KeyboardInterrupt:
            if cells is not None:
                bar.say("finished cells are kept; run again to resume")
            raise
    say_bad_rows(skipped)
    result |= {"limit": limit, "study": study}
    if json_file is not None:
        write_artifact(json_file, evaluate.SCHEMA, result, record)
    if cells is not None:
        cells.unlink(missing_ok=True)
    console = Console(highlight=False)
    console.print(rows_table(result))
    console.print(macro_table(result))


def _datasets(
    sources: list[str], limit: int | None, bad_rows: BadRows
) -> tuple[list[Dataset], list[Path]]:
    """The prompts of each source, and those sources that are files."""
    from dspark.data.files import find_data
    from dspark.data.prompts import load_prompts
    from dspark.evaluation.cells import Dataset

    datasets, files = [], []
    for source in sources:
        prompts = load_prompts(source, limit, bad_rows=bad_rows)  # names a damaged file and line
        name = source.rpartition("/")[2]
        with contextlib.suppress(DataError):  # a dataset of the hub is no file
            file = find_data(source)
            files.append(file)
            name = file.name.removesuffix(".gz").removesuffix(".jsonl")
        datasets.append(Dataset(name, prompts))
    return datasets, files


class _Bar:
    """Progress bar on standard error: cells, and prompts of the present one."""

    def __init__(self) -> None:
        self.bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(file=sys.stderr),
        )
        self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        """A line above the bar."""
        self.bar.console.print(f"dspark: {line}", markup=False, highlight=False, soft_wrap=True)

    def show(self, state: State) -> None:
        """The state after one step."""
        drafter, dataset, temperature, policy = state.cell
        text = f"cell {min(state.cells_done + 1, state.cells)}/{state.cells}: {drafter} {dataset} "
        text += (
            f"temperature {temperature:g} {policy}, {state.prompts_done}/{state.prompts} prompts"
        )
        done = state.cells_done + state.prompts_done / state.prompts
        self.bar.update(self.task, completed=done, total=state.cells, description=text)


def rows_table(result: dict[str, Any]) -> Table:
    """Every cell's accepted length, acceptance by position and speed."""
    title = f"{result['target']}, {result['dtype']}, {result['threads']} threads, "
    title += f"{result['slots']} at once"
    table = Table(title=escape(title))
    for heading in ("drafter", "dataset", "temp.", "policy"):
        table.add_column(heading)
    for heading in ("accepted_length", "by position", "tokens/s"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        table.add_row(
            *_names(row, "drafter", "dataset", "temperature", "policy"),
            _with_interval(row["accepted_length"], row["accepted_length_ci"]),
            " ".join(_number(share) for share in row["accept_by_position"]),
            f"{row['tokens_per_s']:.1f}",
        )
    return table


def macro_table(result: dict[str, Any]) -> Table:
    """Averages over datasets and domains, and what one drafter gains over another."""
    table = Table(title="mean over domains")
    for heading in ("drafter", "temp.", "policy"):
        table.add_column(heading)
    for heading in ("accepted_length", "slope a slot", "gain"):
        table.add_column(heading, justify="right")
    for row in result["macro"]:
        gains = [
            f"{_with_interval(found['gain'], found['ci'], '+.1%')} over {escape(other)}"
            for other, found in row["gains"].items()
        ]
        table.add_row(
            *_names(row, "drafter", "temperature", "policy"),
            _with_interval(row["accepted_length"], row["accepted_length_ci"]),
            _with_interval(row["slope"], row["slope_ci"], "+.3f"),
            "\n".join(gains),
        )
    return table


def _names(row: dict[str, Any], *fields: str) -> list[str]:
    return [f"{row[f]:g}" if f == "temperature" else escape(row[f]) for f in fields]


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _with_interval(value: float | None, ends: list[float] | None, form: str = ".2f") -> str:
    if ends is None:
        return _number(value, form)
    low, high = (_number(end, form) for end in ends)
    return f"{_number(value, form)} [{low}, {high}]"
