"""`dspark demo`: the same prompts without and with the drafter, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dspark.artifacts import provenance, write_artifact
from dspark.cli.common import (
    DEFAULT_DRAFTER,
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    BadRowsOption,
    DrafterOption,
    DtypeOption,
    LongestAnswerOption,
    PolicyOption,
    TargetOption,
    ThreadsOption,
    VerificationOption,
    WeightsOption,
    load_models,
    passing_bar,
    say_bad_rows,
)
from dspark.cli.outputs import claim
from dspark.core import DEFAULT_RULE, SamplingParams, TokenKind
from dspark.errors import ConfigError, DataError
from dspark.fetching.known import DEFAULT_TARGET

if TYPE_CHECKING:
    from dspark.evaluation.demo import Show

SECONDS = 60  # what a person waits for without a second thought
NO_GAIN = (
    "On this machine drafting does not pay: {:.2f} times plain decoding. `dspark doctor` says "
    "which kernels run; --policy off decodes plainly."
)
STYLES = {TokenKind.ACCEPTED: "green", TokenKind.DRAWN: "yellow", TokenKind.PLAIN: ""}


def command(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = DEFAULT_DRAFTER,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Prompt file in place of the bundled prompts; repeatable."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            min=1,
            help="Start no prompt later than this; each domain gets one even so, up to twice "
            f"the time. Default: {SECONDS}, or no limit of time with --limit alone; with both, "
            "what comes first ends the run.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Prompts in all, spread over the domains.")
    ] = None,
    max_new_tokens: LongestAnswerOption = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    compare: Annotated[
        str | None, typer.Option("--compare", help="Also time: transformers.")
    ] = None,
    policy: PolicyOption = None,
    verification: VerificationOption = DEFAULT_RULE,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    bad_rows: BadRowsOption = "stop",
    quiet: Annotated[bool, typer.Option("--quiet", help="Show only the table.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here (dspark.demo/1).")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the figures into this PNG.")
    ] = None,
) -> None:
    """Answer prompts plainly and with the drafter in turn, and compare speed and text.

    Takes a minute, with prompts of each domain in turn. Accepted draft tokens are green, tokens
    the target corrected or added are yellow. Ctrl-C ends it with the table of what is answered.

    Examples:

        dspark demo

        dspark demo --seconds 300 --quiet

        dspark demo --limit 12 --compare transformers --json demo.json --plot demo.png

        dspark demo --data eval/gsm8k.jsonl --data eval/mbpp.jsonl --limit 60 --quiet
    """
    if compare not in (None, "transformers"):
        raise ConfigError("Unknown --compare", found=compare, fix="Use transformers")
    if drafter == "none":
        raise ConfigError("The demo compares with and without a drafter", fix="Name a drafter")
    if compare and temperature > 0:
        raise ConfigError("--compare transformers is greedy", fix="Leave --temperature at 0")
    from dspark.data.bad_rows import BadRows

    claim(json_file, plot)
    from dspark.data.prompts import spread_prompts
    from dspark.evaluation import demo

    skipped = BadRows(bad_rows)
    prompts = spread_prompts(data, limit, skipped)
    if seconds is None and limit is None:
        seconds = SECONDS
    params = SamplingParams(
        temperature=temperature, seed=seed if temperature else None, max_new_tokens=max_new_tokens
    )
    model, draft_model = load_models(target, drafter, dtype, threads, weights)
    module = None
    if compare:
        from dspark.targets.hf_loading import load_module

        module = load_module(target, model.dtype_name, str(model.device))[0]
    console = Console(highlight=False)
    with _progress(len(prompts)) if quiet else _answers(console, model.tokenizer) as show:
        result = demo.run(
            model,
            draft_model,
            prompts,
            params,
            seconds=seconds,
            policy=policy,
            verification=verification,
            compare=module,
            show=show,
            bad_rows=skipped,
        )
    say_bad_rows(skipped)
    console.print(table(result))
    if result["speedup"] < 0.995:  # the table shows less than 1.00
        console.print(NO_GAIN.format(result["speedup"]), markup=False, soft_wrap=True)
    if json_file is not None:
        record = provenance("dspark demo", {"seed": seed}, _files(data or []))
        write_artifact(json_file, demo.SCHEMA, result, record)
    if plot is not None:
        from dspark.reporting.demo_plot import draw

        draw(result, plot)
    if result["interrupted"]:
        raise KeyboardInterrupt


def _files(names: list[str]) -> list[Path]:
    """Those of the prompt sources that are files; a dataset of the hub is none."""
    from dspark.data.files import find_data

    found = []
    for name in names:
        with contextlib.suppress(DataError):
            found.append(find_data(name))
    return found


@contextlib.contextmanager
def _progress(prompts: int) -> Iterator[Show]:
    """A bar in place of the answers; drawn off their clock, as the answers are."""
    with passing_bar(auto_refresh=False) as bar:
        task = bar.add_task("loaded", total=prompts)
        numbers: dict[str, int] = {}

        def show(way: str, prompt: Any, output: Any) -> None:
            number = numbers.setdefault(prompt.id, len(numbers) + 1)
            tokens = len(output.request.output_ids) // 16 * 16
            what = f"prompt {number} of at most {prompts}, {way}: {tokens} tokens"
            if bar.tasks[0].description != what:
                bar.update(task, completed=number - 1, description=what, refresh=True)

        yield show


@contextlib.contextmanager
def _answers(console: Console, tokenizer: Any) -> Iterator[Show]:
    """The answers as they come about; one that is cut short ends its line."""
    screen = _Screen(console, tokenizer)
    try:
        yield screen.show
    finally:
        screen.end_line()


class _Screen:
    """Streams answers; every prompt appears once, then each way's answer under its name."""

    def __init__(self, console: Console, tokenizer: Any) -> None:
        self.console, self.tokenizer = console, tokenizer
        self.prompt_id, self.way = "", ""
        self.text: Any = None
        self.under_way = False

    def show(self, way: str, prompt: Any, output: Any) -> None:
        """One step's tokens, coloured by how they came about."""
        from dspark.targets.detokenize import TextStream

        if prompt.id != self.prompt_id:
            self.prompt_id, self.way = prompt.id, ""
            heading = escape(f"{prompt.id}: {prompt.text[:60]!r}")
            self.console.rule(heading, align="left", style="dim")
        if way != self.way or self.text is None:
            self.way, self.text = way, TextStream(self.tokenizer)
            self.console.print(f"[bold]{way}[/bold]")
        line = Text()
        for token, kind in zip(output.token_ids, output.kinds, strict=True):
            line.append(self.text.push(token), STYLES[kind])
        if output.finished:
            line.append(self.text.rest())
        self.under_way = True
        self.console.print(line, end="", soft_wrap=True)
        if output.finished:
            self.end_line()

    def end_line(self) -> None:
        """End the line of an answer under way."""
        if self.under_way:
            self.console.print()
        self.under_way = False


def table(result: dict[str, Any]) -> Table:
    """The figures as a table."""
    title = (
        f"{result['target']}, {result['dtype']}, policy {result['policy']}, "
        f"{result['prompts']} prompts, {result['new_tokens']} tokens\n"
        f"{result['machine']}, {result['threads']} threads, kernels: {result['kernels']}"
    )
    rows = Table(title=escape(title))
    for heading in ("", "tokens/s", "speed-up"):
        rows.add_column(heading, justify="left" if not heading else "right")
    plain = result["plain_tokens_per_s"]
    if "transformers_tokens_per_s" in result:
        other = result["transformers_tokens_per_s"]
        rows.add_row("transformers generate", f"{other:.1f}", f"{other / plain:.2f}")
    rows.add_row("dspark engine, plain", f"{plain:.1f}", "1.00")
    speed = result["dspark_tokens_per_s"]
    rows.add_row(f"with drafter ({result['drafter']})", f"{speed:.1f}", f"{result['speedup']:.2f}")
    rows.add_section()
    for domain, row in result["domains"].items():
        label = f"{domain}: accepted_length {row['accepted_length']:.2f}"
        rows.add_row(escape(label), "", f"{row['speedup']:.2f}")
    rows.add_section()
    slots = "  ".join(f"{a:.2f}" for a in result["accept_by_position"])
    rows.add_row(f"accepted by position  {slots}", "", "")
    rows.add_row(f"identical texts  {result['identical_texts']:.0%}", "", "")
    gaps = [d["logit_gap"] for d in result["first_differences"]]
    if gaps:
        rows.add_row(f"logit gaps where texts part  {min(gaps):.4f} to {max(gaps):.4f}", "", "")
    return rows
