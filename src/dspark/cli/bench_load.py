"""`dspark bench load`: policies under load, many users at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark.api.names import find_drafter
from dspark.cli.checks import check_policy
from dspark.cli.common import (
    DEFAULT_DRAFTER,
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    BadRowsOption,
    DrafterOption,
    DtypeOption,
    PromptsOption,
    SliceOption,
    TargetOption,
    ThreadsOption,
    TimedAnswerOption,
    VerificationOption,
    WeightsOption,
    load_models,
    passing_bar,
    positive_numbers,
    say_bad_rows,
)
from dspark.cli.outputs import claim
from dspark.core import DEFAULT_RULE
from dspark.errors import ConfigError
from dspark.fetching.known import DEFAULT_TARGET

if TYPE_CHECKING:
    from dspark.drafters.drafter import Drafter
    from dspark.evaluation.load import Load
    from dspark.targets.target import Target


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to serve: a drafter, none for the policy off, under a policy."""

    drafter: str
    policy: str
    model: Drafter | None

    @property
    def fields(self) -> dict[str, Any]:
        """What rows of this way say of the drafter."""
        from dspark.targets.names import portable_name

        kind = None if self.model is None else self.model.config.kind
        return {"drafter": portable_name(self.drafter), "kind": kind}


def command(
    users: Annotated[
        str, typer.Option(help="Users of the closed loop, each with one request at a time.")
    ] = "1,4,16",
    rates: Annotated[
        str, typer.Option(help="Arrivals a second of the open loop (Poisson); none by default.")
    ] = "",
    policies: Annotated[
        str, typer.Option(help="Policies, separated by commas.")
    ] = "off,fixed:3,auto",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DRAFTER=POLICY", help="Another drafter in the same turns; repeatable."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each policy at each level.")] = 20.0,
    slice_s: SliceOption = 1.0,
    data: PromptsOption = None,
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = DEFAULT_DRAFTER,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    verification: VerificationOption = DEFAULT_RULE,
    max_new_tokens: TimedAnswerOption = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of order and arrivals.")] = 0,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    bad_rows: BadRowsOption = "stop",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here (dspark.load/1).")
    ] = None,
) -> None:
    """Serve many users with each policy in turn, on the same prompts.

    Turns are slices of one run, so drift of the machine falls on all policies alike.

    Examples:

        dspark bench load --users 1,4,16 --policies off,fixed:3,causal --json load.json

        dspark bench load --users 8 --rates 2,4 --policies off,pipelined --seconds 30

        dspark bench load --users 1,8,64 --policies off,causal --against mtp=fixed:1
    """
    closed = positive_numbers(users, "--users", whole=True)
    opened = positive_numbers(rates, "--rates")
    names = [name.strip() for name in policies.split(",") if name.strip()]
    if not (closed or opened) or not names:
        raise ConfigError("There is nothing to measure", fix="Name --users or --rates, --policies")
    for name in names:
        check_policy(name)
    for text in against or []:
        _parted(text)
    claim(json_file)
    from dspark.artifacts import provenance, write_artifact
    from dspark.core import SamplingParams
    from dspark.data.bad_rows import BadRows
    from dspark.data.prompt_rows import all_prompt_ids
    from dspark.data.prompts import spread_prompts
    from dspark.engine.engine import Engine
    from dspark.evaluation import load
    from dspark.targets.names import portable_name

    levels = [load.Load(users=int(n)) for n in closed] + [load.Load(rate=rate) for rate in opened]
    skipped = BadRows(bad_rows)
    prompts = spread_prompts(data, bad_rows=skipped)
    params = SamplingParams(temperature=temperature, max_new_tokens=max_new_tokens)
    model, draft_model = load_models(target, drafter, dtype, threads, weights)
    ways = [_Way(drafter, name, draft_model) for name in names]
    ways += _others(against or [], model)
    ids = [ids for _, ids in all_prompt_ids(model, prompts, skipped)]
    say_bad_rows(skipped)
    room = min(max(map(len, ids)) + max_new_tokens, model.max_positions)

    def build(way: _Way, slots: int) -> Engine:
        own = None if way.policy == "off" else way.model
        return Engine(model, own, way.policy, slots, room, seed, verification=verification)

    for way in ways:
        build(way, 1)  # a wrong name is the first thing to hear about
    rows = _measured(
        levels,
        build=build,
        ways=ways,
        prompts=ids,
        params=params,
        seconds=seconds,
        slice_s=slice_s,
        seed=seed,
    )
    console = Console(highlight=False)
    console.print(_shown(rows))
    for line in never_worse_lines(rows):
        console.print(line, markup=False, soft_wrap=True)
    if json_file is not None:
        folder = find_drafter(drafter, target)
        record = provenance("dspark bench load", {"seed": seed}, [folder] if folder else [])
        facts = {
            "target": portable_name(target),
            **ways[0].fields,
            "dtype": model.precision,
            "temperature": temperature,
            "verification": verification if temperature else None,
            "max_new_tokens": max_new_tokens,
            "seconds": seconds,
            "slice_s": slice_s,
            "rows": rows,
        }
        write_artifact(json_file, load.SCHEMA, facts, record)


def _measured(levels: Sequence[Load], *, ways: Sequence[_Way], **how: Any) -> list[dict[str, Any]]:
    """Rows of all levels, each with what its way says of the drafter, behind a bar."""
    from dspark.evaluation import load

    with passing_bar() as bar:
        task = bar.add_task("starting", total=len(levels))

        def show(level: Load, done: int, all_: int) -> None:
            what = f"{level.users} users" if level.users else f"{level.rate:g} arrivals/s"
            at = levels.index(level) + done / all_
            bar.update(task, completed=at, description=f"{what}, slice {done}/{all_}")

        rows = load.run(ways=ways, levels=levels, on_slice=show, **how)
    return [row | way.fields for row, way in zip(rows, cycle(ways), strict=False)]


def _others(named: Sequence[str], target: Target) -> list[_Way]:
    """Ways with drafters of their own, from DRAFTER=POLICY.

    Raises:
        ConfigError: one is not of that form, or without a drafter.
        CheckpointError, IncompatibleDrafterError: see ``load_drafter``.
    """
    from dspark.api.models import load_drafter

    ways = []
    for text in named:
        drafter, policy = _parted(text)
        ways.append(_Way(drafter, policy, load_drafter(drafter, target)))
    return ways


def _parted(text: str) -> tuple[str, str]:
    """Drafter and policy of DRAFTER=POLICY."""
    drafter, separator, policy = text.rpartition("=")
    if not separator or drafter in ("", "none"):
        what = "--against takes a drafter and a policy"
        raise ConfigError(what, found=text, fix="Write mtp=fixed:1")
    check_policy(policy)
    return drafter, policy


def never_worse_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Each adaptive policy against its drafter's best fixed choice, one line a level."""
    from dspark.maths.never_worse import LIMITS, against_fixed

    levels: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["drafter"] != rows[0]["drafter"]:
            continue
        turns = [(part["tokens"], part["seconds"]) for part in row["slices"]]
        levels.setdefault(_level(row), {})[row["policy"]] = turns
    return [
        f"{level}: {policy} {found.ratio:.3f} ({found.low:.3f} to {found.high:.3f}) of the best "
        f"fixed choice, {' and '.join(dict.fromkeys(found.chosen))}"
        + (f"; below {LIMITS[policy]}" if found.falls_short(policy) else "")
        for level, lanes in levels.items()
        for policy, found in against_fixed(lanes).items()
    ]


def _level(row: dict[str, Any]) -> str:
    return f"{row['users']} users" if row["users"] else f"{row['rate']:g}/s"


def _shown(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    headings = ("load", "policy", "tokens/s", "a user p50", "first token p50")
    for heading in (*headings, "accepted_length", "verify_len", "wasted"):
        table.add_column(heading, justify="left" if heading in ("load", "policy") else "right")
    own, before = rows[0]["drafter"], None
    for row in rows:
        name = _level(row)
        if before not in (None, name):
            table.add_section()
        before = name
        ends = " to ".join(f"{end:.0f}" for end in row["tokens_per_s_ci"])
        table.add_row(
            name,
            escape(row["policy"] if row["drafter"] == own else f"{row['drafter']} {row['policy']}"),
            f"{row['tokens_per_s']:.1f} ({ends})",
            _form(row["tokens_per_s_per_user_p50"], ".1f"),
            _form(row["ttft_p50"], ".3f"),
            _form(row["accepted_length"], ".2f"),
            _form(row["mean_verify_len"], ".2f"),
            _form(row["wasted_share"], ".0%"),
        )
    return table


def _form(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
