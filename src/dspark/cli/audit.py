"""`dspark audit`: is anything lost with this target, drafter and policy, here and now?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark.cli.common import (
    DEFAULT_DRAFTER,
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    BadRowsOption,
    DrafterOption,
    DtypeOption,
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
from dspark.core import DEFAULT_RULE
from dspark.errors import ConfigError
from dspark.fetching.known import DEFAULT_TARGET
from dspark.signals import note_interrupts

EXIT = {"lossless": 0, "lossy": 1, "undecided": 3}


def command(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = DEFAULT_DRAFTER,
    policy: PolicyOption = None,
    verification: VerificationOption = DEFAULT_RULE,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Prompt file in place of the bundled prompts; repeatable."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts, spread over the domains.")] = 12,
    samples: Annotated[int, typer.Option(min=1, help="Sampled answers to each prompt.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Longest answer.")] = 64,
    slots: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all draws.")] = 0,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, help="Answer after so many seconds of checking with what is known."),
    ] = None,
    bad_rows: BadRowsOption = "stop",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the findings here (dspark.audit/1).")
    ] = None,
) -> None:
    """Check that drafts change neither greedy text nor the distribution, and that seeds hold.

    Drafted decoding is compared with plain decoding of the same target, with the same weights.
    Exit code 0: nothing is lost. 1: something is. 3: too little was drafted to tell, or the
    distribution test could not have seen a total-variation distance of 0.05. Without --policy whole
    blocks are verified, where there is most to lose. Adaptive policies, auto too, draft little for
    many requests at a time: give them --slots 1 or 2, and more --samples. Ctrl-C ends the checking
    and gives the answer so far, as --seconds does; what is undecided says what it would take.

    Examples:

        dspark audit

        dspark audit --policy causal --slots 2 --dtype float32 --json audit.json

        dspark audit --seconds 60

        dspark audit --target ./my-model --drafter runs/mine/drafter --data prompts.jsonl
    """
    if drafter == "none":
        raise ConfigError("There is nothing to audit without a drafter", fix="Name a drafter")
    claim(json_file)
    from dspark.artifacts import provenance, write_artifact
    from dspark.data.bad_rows import BadRows
    from dspark.data.prompt_rows import all_prompt_ids
    from dspark.data.prompts import spread_prompts
    from dspark.evaluation import audit

    skipped = BadRows(bad_rows)
    prompts = spread_prompts(data, limit, skipped)
    model, draft_model = load_models(target, drafter, dtype, threads, weights)
    ids = [ids for _, ids in all_prompt_ids(model, prompts, skipped)]
    say_bad_rows(skipped)
    plan = audit.Plan(ids, max_new_tokens, max_new_tokens, samples, slots)
    with passing_bar() as bar, note_interrupts() as came:
        task = bar.add_task("checking", total=1)

        def show(part: str, done: float, planned: int) -> None:
            text = f"{part}, {int(done)}/{planned} texts"
            bar.update(task, completed=done, total=planned, description=text)

        pace = audit.Pace(seconds, lambda: bool(came), show)
        found = audit.run(
            model, draft_model, policy, plan, seed=seed, pace=pace, verification=verification
        )
    Console(highlight=False).print(_shown(found))
    if json_file is not None:
        write_artifact(json_file, audit.SCHEMA, found, provenance("dspark audit", {"seed": seed}))
    raise typer.Exit(EXIT[found["verdict"]])


def _shown(found: dict[str, Any]) -> Table:
    title = f"{found['target']}, {found['drafter']}, {found['policy']}, {found['dtype']}"
    verdict = f"verdict: {found['verdict']}, against {found['against']}"
    if found["stopped"]:
        verdict += f", stopped after {found['seconds']:.0f} s"
    table = Table(title=escape(title), caption=escape(verdict))
    for heading in ("check", "outcome", "figures"):
        table.add_column(heading)
    greedy, drawn, seeds = found["greedy"], found["distribution"], found["seeds"]
    figures = f"{_share(greedy)} of {greedy['prompts']} texts identical; where others part, the "
    figures += f"two best logits differ by {greedy['largest_gap']:.4f} at most"
    _row(table, "greedy text", greedy, figures)
    seen = drawn["distance_seen"]
    figures = (
        f"{drawn['tokens']} tokens, p = {drawn['p_value']:.3g}; would have seen a distance of "
    )
    _row(table, "distribution", drawn, figures + ("-" if seen is None else f"{seen:.3f}"))
    figures = f"{_share(seeds)} of {seeds['requests']} seeded texts the same in company"
    _row(table, "seeds", seeds, figures)
    return table


def _share(check: dict[str, Any]) -> str:
    share = check["identical"]
    return "-" if share is None else f"{share:.0%}"


def _row(table: Table, name: str, check: dict[str, Any], figures: str) -> None:
    """A check's figures, and what it would take to decide."""
    needs = check["needs"] if check["outcome"] == "undecided" else None
    table.add_row(name, check["outcome"], figures + (f"\n[b]needs {needs}[/b]" if needs else ""))
