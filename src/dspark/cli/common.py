"""Options and loading shared by the verbs that run models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.api.names import AUTO
from dspark.core import check_rule
from dspark.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

    from dspark.data.bad_rows import BadRows


DEFAULT_DRAFTER = AUTO

TargetOption = Annotated[
    str, typer.Option("--target", help="Known name, local folder or Hugging Face id.")
]
DraftersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--drafter",
        help="Shipped name or checkpoint folder, with NAME= in front to name it; repeatable. "
        f"Default: {DEFAULT_DRAFTER}.",
    ),
]
DrafterOption = Annotated[
    str,
    typer.Option(
        "--drafter",
        help="Name of a shipped drafter (dspark), a checkpoint folder, none, or auto: the shipped "
        "one for this target, if there is one.",
    ),
]


DEFAULT_DTYPE = AUTO
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Weights and arithmetic: bfloat16, float32, float16, or auto: the faster one of the "
        "first two, measured once on this machine.",
    ),
]
DEFAULT_WEIGHTS = "same"
WeightsOption = Annotated[
    str,
    typer.Option(
        "--weights",
        help="The target's weights: same (as --dtype says), or int8: eight bits, each row rounded "
        "with a scale of its own, on a processor.",
    ),
]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Smallest set of tokens with this mass; 1 keeps all.")
]
TopKOption = Annotated[int, typer.Option("--top-k", help="Most likely tokens kept; 0 keeps all.")]
LongestAnswerOption = Annotated[
    int, typer.Option("--max-new-tokens", help="Longest answer in tokens.")
]
SlotsOption = Annotated[int, typer.Option("--slots", min=1, help="Answers made at the same time.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Processor threads; unset takes all cores.")
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="Draft tokens to verify: auto (default), off, fixed:K, threshold:P, causal or "
        "pipelined.",
        metavar="NAME",
    ),
]
VerificationOption = Annotated[
    str,
    typer.Option(
        "--verification",
        callback=check_rule,
        help="How drafts above temperature 0 are accepted: block (as a whole) or token (one by "
        "one). Answers are distributed as the target's own under either.",
        metavar="RULE",
    ),
]
PromptsOption = Annotated[
    list[str] | None,
    typer.Option("--data", help="Prompt file in place of the bundled prompts; repeatable."),
]
BadRowsOption = Annotated[
    str,
    typer.Option(
        "--bad-rows",
        metavar="stop|skip",
        help="Rows that cannot be used: stop at the first, or skip and count them.",
    ),
]
SliceOption = Annotated[float, typer.Option("--slice", min=0.01, help="Seconds of a turn.")]
TimedAnswerOption = Annotated[  # two tokens have a time between them
    int, typer.Option("--max-new-tokens", min=2, help="Longest answer in tokens.")
]


@contextmanager
def serving_packages() -> Iterator[None]:
    """Around imports of the server, whose packages not everybody installs.

    Raises:
        ConfigError: one is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Serving needs packages that are not installed",
            found=f"no {error.name}",
            fix="Install them with: pip install 'dspark[serve]'",
        ) from error


def say_bad_rows(bad_rows: BadRows) -> None:
    """A line on standard error about the rows that were skipped since the last one."""
    if line := bad_rows.news():
        print(f"dspark: note: {line}", file=sys.stderr)


def positive_numbers(text: str, option: str, whole: bool = False) -> list[float]:
    """The numbers of an option, separated by commas.

    Raises:
        ConfigError: one is none.
    """
    found = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        try:
            value = float(int(word)) if whole else float(word)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            kind = "whole numbers" if whole else "numbers"
            raise ConfigError(f"{option} takes {kind} above 0", found=word, fix="Write 1,4,16")
        found.append(value)
    return found


def passing_bar(auto_refresh: bool = True) -> Progress:
    """A bar on standard error that goes away when the work is done.

    Args:
        auto_refresh: draw it ten times a second from a thread of its own; False leaves it to
            the caller, whose work is timed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        auto_refresh=auto_refresh,
    )


def load_models(  # type: ignore[no-untyped-def]
    target: str, drafter: str, dtype: str, threads: int | None, weights: str = DEFAULT_WEIGHTS
):
    """`api.models.load_models`, which imports torch, once a verb needs it."""
    from dspark.api.models import load_models

    return load_models(target, drafter, dtype, weights=weights, threads=threads)
