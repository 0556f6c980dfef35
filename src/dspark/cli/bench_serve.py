"""`dspark bench serve`: what HTTP costs on top of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark.api.names import find_drafter
from dspark.cli.common import (
    DEFAULT_DRAFTER,
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    BadRowsOption,
    DrafterOption,
    DtypeOption,
    PolicyOption,
    PromptsOption,
    SliceOption,
    TargetOption,
    ThreadsOption,
    TimedAnswerOption,
    WeightsOption,
    load_models,
    passing_bar,
    say_bad_rows,
    serving_packages,
)
from dspark.cli.outputs import claim
from dspark.fetching.known import DEFAULT_TARGET

if TYPE_CHECKING:
    from dspark.drafters.drafter import Drafter
    from dspark.server.bench import Load

FIXED_LENGTH = 4  # of the policy unless told otherwise: both ways then do the same work


def command(
    users: Annotated[int, typer.Option(min=1, help="Each has one request at a time.")] = 32,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Of each way, after one turn to warm up.")
    ] = 20.0,
    slice_s: SliceOption = 1.0,
    data: PromptsOption = None,
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = DEFAULT_DRAFTER,
    policy: PolicyOption = None,
    max_new_tokens: TimedAnswerOption = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts' order.")] = 0,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    bad_rows: BadRowsOption = "stop",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the figures here (dspark.serve_overhead/1)."),
    ] = None,
) -> None:
    """Compare the engine behind HTTP with the engine alone, greedy, in turns of one run.

    The HTTP clients are a process of their own. Where the engine's threads take all cores, the
    clients' work costs the server speed too; the result says how much of a core they took. Without
    --policy it is fixed:4, or off without a drafter, so that both do the same work.

    Examples:

        dspark bench serve --json results/serve_overhead.json

        dspark bench serve --users 8 --policy causal --seconds 40 --threads 1
    """
    claim(json_file)
    with serving_packages():
        from dspark.server import bench
    import torch

    from dspark.artifacts import provenance, write_artifact
    from dspark.data.bad_rows import BadRows
    from dspark.data.prompt_rows import all_prompt_ids
    from dspark.data.prompts import spread_prompts
    from dspark.engine.scheduler import Adaptive
    from dspark.targets.names import portable_name

    skipped = BadRows(bad_rows)
    prompts = spread_prompts(data, bad_rows=skipped)
    model, draft_model = load_models(target, drafter, dtype, threads, weights)
    policy = policy or _default_policy(draft_model)
    encoded = all_prompt_ids(model, prompts, skipped)
    say_bad_rows(skipped)
    longest = max(len(ids) for _, ids in encoded)
    conversations = [prompt.messages for prompt, _ in encoded]
    bare, served = (
        bench.TurnEngine(
            model,
            None if policy == "off" else draft_model,
            policy,
            slots=users,
            max_len=longest + max_new_tokens,
        )
        for _ in range(2)
    )
    load = bench.Load(users, max_new_tokens, seconds, slice_s, seed)
    calibration = bare.policy.tables.calibration if isinstance(bare.policy, Adaptive) else None
    with _Bar(load) as bar:
        found = bench.run(bare, served, conversations, load, calibration, bar.show)
    for line in lines(found):
        print(line)
    if json_file is not None:
        folder = find_drafter(drafter, target)
        record = provenance("dspark bench serve", {"seed": seed}, [folder] if folder else [])
        facts = {
            "target": portable_name(target),
            "drafter": portable_name(drafter),
            "kind": None if draft_model is None else draft_model.config.kind,
            "policy": bare.policy.name,
            "dtype": model.precision,
            "threads": torch.get_num_threads(),
            "users": users,
            "max_new_tokens": max_new_tokens,
            "seconds": seconds,
            "slice_s": slice_s,
            **found,
        }
        write_artifact(json_file, bench.SCHEMA, facts, record)


def _default_policy(drafter: Drafter | None) -> str:
    block = 0 if drafter is None else drafter.config.block_size
    return f"fixed:{min(FIXED_LENGTH, block)}" if block else "off"


class _Bar:
    """Progress over pairs of turns."""

    def __init__(self, load: Load) -> None:
        self.load, self.bar = load, passing_bar()
        self.task = self.bar.add_task("starting", total=load.pairs)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, done: int, all_: int) -> None:
        """The state after a pair."""
        text = f"{self.load.users} users, pair {done}/{all_}"
        self.bar.update(self.task, completed=done, description=text)


def lines(found: dict[str, Any]) -> list[str]:
    """The figures in words."""
    low, high = found["overhead_ci"]
    speeds = [
        f"{way:6} {found[way]['tokens_per_s']:.1f} tokens/s, "
        f"{found[way]['tokens_per_step']:.1f} a step, "
        f"{found[way]['cpu_ms_per_token']:.2f} ms of processor time a token"
        for way in ("bare", "served")
    ]
    return [
        *speeds,
        f"HTTP takes {found['overhead']:.1%} ({low:.1%} to {high:.1%}) of the tokens/s; "
        f"the clients took {found['client_cpu_share']:.1%} of a core",
    ]
