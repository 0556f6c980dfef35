"""`dspark calibrate`: fit and judge the drafter's confidences."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    say_bad_rows,
)
from dspark.cli.outputs import claim, claim_kept
from dspark.core import DEFAULT_RULE, SamplingParams
from dspark.errors import CheckpointError, ConfigError, DataError
from dspark.fetching.known import DEFAULT_TARGET
from dspark.tables.calibration import FILE as TABLE

if TYPE_CHECKING:
    from dspark.calibration.collect import Progress
    from dspark.tables.calibration import CalibrationTable


def command(
    data: Annotated[list[str], typer.Option(help="Prompt file, .jsonl or .jsonl.gz; repeatable.")],
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Answers trained on: prompts with their ids are left out; repeatable."),
    ] = None,
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = DEFAULT_DRAFTER,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    verification: VerificationOption = DEFAULT_RULE,
    max_new_tokens: LongestAnswerOption = 256,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Prompts in all, spread over the domains.")
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(min=1, help="Stop at so many rounds to check with; fitted ones come on top."),
    ] = 20_000,
    check_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the prompts kept out of fitting.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Decides order of prompts and draws.")] = 0,
    slots: SlotsOption = 32,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    bad_rows: BadRowsOption = "stop",
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Judge the table that is there; fit nothing.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the figures here (dspark.calibration_check/1)."),
    ] = None,
) -> None:
    """Fit and judge the drafter's confidences against what the target accepts.

    The table calibration.json in the drafter's folder gets an entry for the temperature, top-p,
    top-k and verification. All figures come from prompts that nothing was fitted on. Run again
    after an interruption to go on.

    Examples:

        dspark calibrate --data prompts.jsonl --exclude answers.jsonl.gz

        dspark calibrate --data prompts.jsonl --temperature 0 --json results/calibration.json

        dspark calibrate --data others.jsonl --check-only --check-share 1
    """
    if not 0 < check_share < 1 and not (check_only and check_share == 1):
        raise ConfigError(
            "--check-share leaves nothing to fit on, or nothing to check with",
            found=check_share,
            fix="Use a share between 0 and 1; 1 itself only with --check-only",
        )
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens
    )
    folder = _folder(drafter, target)
    claim(json_file, None if check_only else folder / TABLE)
    home = _home(folder)
    entry = None
    if check_only:
        entry = home.existing().entry(temperature, top_p, top_k, verification)
    from dspark.calibration import calibrate, collect
    from dspark.calibration.prompts import choose_prompts
    from dspark.data.bad_rows import BadRows

    sources, excluded = [[find_data(name) for name in names] for names in (data, exclude or [])]
    skipped = BadRows(bad_rows)
    prompts = choose_prompts(sources, excluded, limit, seed, bad_rows=skipped)
    say_bad_rows(skipped)
    identity = {"drafter": home.sha256, "target": target, "dtype": dtype}
    identity |= {} if weights == DEFAULT_WEIGHTS else {"weights": weights}
    identity |= {"confidence": sha256_file(home.head)} if home.head else {}
    identity |= {"verification": verification} if temperature else {}
    part = collect.part_file(prompts, params, seed, **identity)
    claim_kept(part)
    model, draft_model = load_models(target, drafter, dtype, threads, weights)
    with _Bar(rounds) as bar:
        try:
            entry, result = calibrate.run(
                model,
                draft_model,
                prompts,
                params,
                part,
                entry=entry,
                rounds=rounds,
                check_share=check_share,
                slots=slots,
                seed=seed,
                verification=verification,
                on_progress=bar.show,
                bad_rows=skipped,
            )
        except KeyboardInterrupt:
            bar.say("finished answers are kept; run again to resume")
            raise
    say_bad_rows(skipped)
    record = provenance("dspark calibrate", {"seed": seed}, [*sources, *excluded, *home.files])
    if not check_only:
        home.add(entry, result, draft_model.config.block_size, record)
    if json_file is not None:
        write_artifact(json_file, calibrate.CHECK_SCHEMA, result, record)
    part.unlink(missing_ok=True)
    console = Console(highlight=False)
    console.print(figures(result))
    if not check_only:
        console.print(escape(f"written to {home.path}"), soft_wrap=True)
    if result["rounds"] < calibrate.FEW_ROUNDS:
        _warn(result, calibrate.FEW_ROUNDS)


def _warn(result: dict[str, Any], few: int) -> None:
    text = f"only {result['rounds']} rounds were judged; fewer than {few} cannot show an ECE below "
    text += f"about 1.5 %, and here noise alone makes {result['noise_floor_mean']:.1%}"
    print(f"dspark: warning: {text}", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class _Home:
    """A drafter's weights with their hash, and what lies beside them: the calibration table and the
    informed confidence head, where there are such.
    """

    weights: Path
    sha256: str
    path: Path
    table: CalibrationTable | None
    head: Path | None

    @property
    def files(self) -> list[Path]:
        """What confidences come from."""
        return [self.weights, self.head] if self.head else [self.weights]

    def existing(self) -> CalibrationTable:
        """The table that is there; DataError without one."""
        if self.table is None:
            raise DataError(
                "The drafter has no calibration table to check",
                found=f"no {self.path}",
                fix="Run `dspark calibrate` without --check-only first",
            )
        return self.table

    def add(
        self, entry: Any, result: dict[str, Any], block_size: int, record: dict[str, Any]
    ) -> None:
        """Write the table with `entry` in it, `result` being what it achieved."""
        from dspark.tables.calibration import CalibrationTable

        table = self.table or CalibrationTable(
            self.sha256, result["drafter"], block_size, result["target"]
        )
        metrics = {key: result[key] for key in result if key == "rounds" or key.endswith("_mean")}
        table.with_entry(replace(entry, metrics=metrics)).save(self.path, record)


def _folder(drafter: str, target: str) -> Path:
    """A drafter's folder; errors as of `find_drafter`, and without a drafter."""
    folder = find_drafter(drafter, target)
    if folder is None:
        raise ConfigError("There is nothing to calibrate without a drafter", fix="Name a drafter")
    return folder


def _home(folder: Path) -> _Home:
    """Read a drafter's table.

    Raises:
        CheckpointError: its weights cannot be read.
        IncompatibleDrafterError: its table was made for other weights.
        DataError: its table is damaged.
    """
    from dspark.drafters.checkpoint import load_calibration
    from dspark.drafters.dspark.informed import FILE as CONFIDENCE

    weights, path = folder / "model.safetensors", folder / TABLE
    try:
        sha256 = sha256_file(weights)
    except OSError as error:
        raise CheckpointError(
            f"Cannot read the drafter in {folder}",
            found=f"{weights.name}: {error.strerror}",
            fix="The folder must hold a whole config.json and model.safetensors",
        ) from error
    head = folder / CONFIDENCE if (folder / CONFIDENCE).exists() else None
    return _Home(weights, sha256, path, load_calibration(folder, sha256), head)


class _Bar:
    """Progress bar on standard error over the rounds to check with."""

    def __init__(self, rounds: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=Console(file=sys.stderr),
        )
        self.task = self.bar.add_task("starting", total=rounds)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        """A line above the bar."""
        self.bar.print(line)

    def show(self, progress: Progress) -> None:
        """The state after one step."""
        text = f"{progress.check_rounds} rounds to check, {progress.fit_rounds} to fit"
        self.bar.update(self.task, completed=progress.check_rounds, description=text)


def figures(result: dict[str, Any]) -> Table:
    """The figures as a table, a row a position and one for the means."""
    title = f"{result['target']}, temperature {result['temperature']:g}: {result['rounds']} rounds "
    title += f"of {result['prompts']} prompts, fitted on {result['fit_rounds']} others"
    rows = Table(title=escape(title), padding=0)  # eighty columns are few
    headings = (
        "slot",
        "rounds",
        "accepted",
        "ECE",
        "after",
        "floor",
        "AUROC",
        "of c*",
        "Brier",
        "T",
    )
    for heading in headings:
        rows.add_column(heading, justify="right")
    for row in result["positions"]:
        rows.add_row(
            str(row["k"]),
            str(row["rounds"]),
            f"{row['base_rate']:.1%}",
            f"{row['ece_before']:.2%}",
            f"{row['ece_after']:.2%}",
            f"{row['noise_floor']:.2%}",
            f"{row['auroc']:.3f}",
            f"{row['auroc_true']:.3f}",
            f"{row['brier_after']:.4f}",
            f"{row['temperature']:.3f}",
        )
    ece = [f"{result[name]:.2%}" for name in ("ece_before_mean", "ece_after_mean")]
    floor, auroc = f"{result['noise_floor_mean']:.2%}", f"{result['auroc_mean']:.3f}"
    rows.add_section()
    rows.add_row("mean", "", "", *ece, floor, auroc, f"{result['auroc_true_mean']:.3f}")
    return rows
