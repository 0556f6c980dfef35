"""`dspark regenerate`: let the target answer a file of prompts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.cli.common import (
    DEFAULT_DTYPE,
    BadRowsOption,
    DtypeOption,
    say_bad_rows,
)
from dspark.cli.outputs import claim

if TYPE_CHECKING:
    from dspark.regeneration.regenerate import RegenerationProgress

DEFAULT_SLOTS = {"cuda": 1024, "cpu": 128}
DEFAULT_TEMPERATURES = "0:0.35,0.6@0.95:0.25,1:0.4"


def command(
    prompts: Annotated[
        str,
        typer.Option(help="JSON-lines file, or owner/name[:split] of a Hugging Face dataset."),
    ],
    out: Annotated[Path, typer.Option(help="File that answers are appended to, .jsonl.")],
    target: Annotated[
        str, typer.Option(help="Known name, folder or Hugging Face id.")
    ] = "smollm2-135m",
    temperatures: Annotated[
        str, typer.Option(help="temperature[@top_p]:share of the prompts, comma-separated.")
    ] = DEFAULT_TEMPERATURES,
    suffix_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of math prompts that ask for a boxed answer."),
    ] = 0.5,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 384,
    max_len: Annotated[
        int, typer.Option(min=2, help="Longest prompt and answer; longer prompts are skipped.")
    ] = 1024,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Answer this many prompts, drawn by the seed.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Stop once the file has this many response tokens."),
    ] = None,
    turns: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Answer whole conversations, this many answers each at most, in place of the last "
            "message alone; what others answered in them is left out.",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1, help="Answers made at the same time; default: 1,024 on a GPU, else 128."
        ),
    ] = None,
    dtype: DtypeOption = DEFAULT_DTYPE,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: torch's choice.")
    ] = None,
    bad_rows: BadRowsOption = "stop",
    seed: Annotated[int, typer.Option(min=0, help="Decides order, temperatures, draws.")] = 0,
) -> None:
    """Let the target answer prompts, to train a drafter on; run again to resume.

    Answers are written as they finish. A prompt that the file has an answer to is left out, so an
    interrupted run goes on where it stopped. With --turns the target gives every answer of a
    conversation, in order, each in a row of its own.

    Examples:

        dspark regenerate --prompts prompts_train.jsonl --out answers.jsonl --tokens 1000000

        dspark regenerate --prompts mine.jsonl --out greedy.jsonl --temperatures 0 --limit 500

        dspark regenerate --prompts mine.jsonl --out mixed.jsonl --temperatures 0:0.5,0.7@0.9:0.5

        dspark regenerate --prompts talks.jsonl --out talks_answered.jsonl --turns 4
    """
    from dspark.data.bad_rows import BadRows
    from dspark.data.prompts import load_prompts
    from dspark.regeneration.mixture import parse_mixture

    mixture = parse_mixture(temperatures)  # words a mistake before anything is loaded
    left_out = BadRows(bad_rows)
    chosen = load_prompts(prompts, limit, seed, left_out)
    say_bad_rows(left_out)
    claim(out)

    from dspark.api.models import load_target
    from dspark.regeneration.conversations import opening
    from dspark.regeneration.regenerate import run

    model = load_target(target, dtype, threads=threads)
    answers = len(chosen)
    if turns:
        talks = [opening(prompt, prompt.messages) for prompt in chosen]
        answers = sum(min(1 + len(talk.later), turns) for talk in talks)
    with _Bar(answers, tokens) as bar:
        try:
            done = run(
                model,
                chosen,
                out,
                mixture=mixture,
                suffix_share=suffix_share,
                max_new_tokens=max_new_tokens,
                max_len=max_len,
                slots=slots or DEFAULT_SLOTS[model.device.type],
                seed=seed,
                limit_tokens=tokens,
                turns=turns,
                on_progress=bar.show,
                bad_rows=left_out,
            )
        except KeyboardInterrupt:
            bar.say("finished answers are kept; run again to resume")
            raise
    say_bad_rows(left_out)
    skipped = f", {done.skipped} prompts too long" if done.skipped else ""
    print(f"{out}: {done.rows} answers, {done.tokens} tokens{skipped}")


class _Bar:
    """Progress bar on standard error with tokens a second."""

    def __init__(self, prompts: int, tokens: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.tokens = tokens
        self.bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=Console(file=sys.stderr),
        )
        self.task = self.bar.add_task("starting", total=tokens or prompts)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        """A line above the bar."""
        self.bar.print(line)

    def show(self, progress: RegenerationProgress) -> None:
        """The state after one step."""
        rate = progress.new_tokens / progress.seconds if progress.seconds > 0 else 0.0
        done = progress.tokens if self.tokens else progress.rows + progress.skipped
        text = f"{progress.rows} answers  {progress.tokens} tokens  {rate:.0f} tokens/s"
        self.bar.update(self.task, completed=done, description=text)
