"""`dspark bench peers`: this engine beside other ways to run the same target."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark.api.names import named_drafters
from dspark.cli.common import (
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    BadRowsOption,
    DraftersOption,
    DtypeOption,
    PromptsOption,
    TargetOption,
    ThreadsOption,
    WeightsOption,
    load_models,
    passing_bar,
    say_bad_rows,
)
from dspark.cli.outputs import claim
from dspark.errors import ConfigError
from dspark.fetching.known import DEFAULT_TARGET

if TYPE_CHECKING:
    from dspark.core import SamplingParams
    from dspark.evaluation.answers import Answer
    from dspark.evaluation.peers import Ask, Peer
    from dspark.targets.target import Target


def command(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DraftersOption = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Of every drafter, or one for each in their order; repeatable. Default: auto.",
            metavar="NAME",
        ),
    ] = None,
    data: PromptsOption = None,
    limit: Annotated[
        int | None,
        typer.Option(min=2, help="Prompts in all, spread over the domains; the first warms up."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 128,
    gguf: Annotated[
        Path | None, typer.Option(help="The target as a GGUF file, for llama-cpp-python.")
    ] = None,
    llama_server: Annotated[
        str | None, typer.Option(help="Address of a llama.cpp server that runs the target.")
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            help="Kernel levels to run this engine at as well, separated by commas; torch is "
            "PyTorch's own operations."
        ),
    ] = None,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    bad_rows: BadRowsOption = "stop",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here (dspark.peers/1).")
    ] = None,
) -> None:
    """Time this engine and other programs on the same prompts, greedy, in turn.

    A program that is not there is listed as missing. llama.cpp's server runs on threads of its own
    choice: start it with as many.

    Examples:

        dspark bench peers --limit 20 --json results/peers.json

        dspark bench peers --limit 12 --levels torch,avx2,avx512

        dspark bench peers --drafter dspark --drafter mtp --policy fixed:4 --policy fixed:1
        --gguf model-q8_0.gguf --llama-server http://127.0.0.1:8080
    """
    claim(json_file)
    places = named_drafters(drafter, target)
    policies = _policies(policy or [], len(places))
    at_levels = _levels(levels or "")
    from dspark.artifacts import provenance, write_artifact
    from dspark.core import SamplingParams
    from dspark.data.bad_rows import BadRows
    from dspark.data.prompt_rows import all_prompt_ids
    from dspark.data.prompts import spread_prompts
    from dspark.evaluation import llama_cpp, peers
    from dspark.targets.names import portable_name

    if llama_server is not None:
        llama_cpp.check_url(llama_server)  # before a model is loaded
    skipped = BadRows(bad_rows)
    prompts = spread_prompts(data, limit, skipped)
    model, _ = load_models(target, "none", dtype, threads, weights)
    ids = [ids for _, ids in all_prompt_ids(model, prompts, skipped)]
    say_bad_rows(skipped)
    room = min(max(map(len, ids)) + max_new_tokens, model.max_positions)
    others = [llama_cpp.bindings(gguf, model, room, _threads()), llama_cpp.server(llama_server)]
    own = _own(model, places, policies, room)
    for level in at_levels:
        own += _at_level(level, target, model, places, policies, room)
    found = [*own, *_transformers(target, model), *others]
    rows = _run(model, found, ids, SamplingParams(max_new_tokens=max_new_tokens))
    facts = {
        "target": portable_name(target),
        "dtype": model.precision,
        "threads": _threads(),
        "max_new_tokens": max_new_tokens,
        "llama": "; ".join(peer.note for peer in found if peer.note) or None,
        "rows": rows,
    }
    console = Console(highlight=False)
    console.print(table(facts))
    for row in rows:
        if row["missing"]:
            console.print(
                f"missing: {row['label']}: {row['missing']}", markup=False, soft_wrap=True
            )
    if json_file is not None:
        inputs = [*(folder for _, folder in places), *([] if gguf is None else [gguf])]
        record = provenance("dspark bench peers", {}, inputs)
        write_artifact(json_file, peers.SCHEMA, facts, record)


def _levels(text: str) -> list[str]:
    """Kernel levels of an option.

    Raises:
        ConfigError: one does not run here.
    """
    from dspark import native

    found = [word for word in (part.strip() for part in text.split(",")) if word]
    for level in found:
        if level not in native.usable():
            fix = f"Use {', '.join(native.usable())}"
            raise ConfigError("There is no such kernel level here", found=level, fix=fix)
    return found


def _policies(names: list[str], count: int) -> list[str | None]:
    """One policy a drafter; None for the usual one.

    Raises:
        ConfigError: there are neither none, one nor as many as drafters.
    """
    if len(names) not in (0, 1, count):
        fix = "Give one for all, or one for each in their order"
        found = f"{len(names)} for {count} drafters"
        raise ConfigError("--policy does not match the drafters", found=found, fix=fix)
    if len(names) == 1:
        return [names[0]] * count
    return [*names] or [None] * count


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _own(
    model: Target, places: list[tuple[str | None, Path]], policies: list[str | None], room: int
) -> list[Peer]:
    """This engine, plain and with each drafter."""
    from dspark.evaluation import peers
    from dspark.evaluation.cells import check_distinct, load_contender

    contenders = [load_contender(folder, model, label) for label, folder in places]
    check_distinct("drafters", [c.label for c in contenders], "Name them: --drafter NAME=PATH")
    drafted = [
        peers.drafted_peer(model, contender, room, policy)
        for contender, policy in zip(contenders, policies, strict=True)
    ]
    return [peers.plain_peer(model, room), *drafted]


def _at_level(
    level: str,
    target: str,
    model: Target,
    places: list[tuple[str | None, Path]],
    policies: list[str | None],
    room: int,
) -> list[Peer]:
    """This engine with a target of its own at a kernel level, as type and weights are."""
    from dspark.native.levels import SWITCH
    from dspark.targets.products import on_level

    def there(ask: Ask) -> Ask:
        def asked(ids: list[int], params: SamplingParams) -> Answer:
            with on_level(level):
                return ask(ids, params)

        return asked

    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = level
    try:
        with on_level(level):
            mine, _ = load_models(target, "none", model.dtype_name, None, model.weights)
            peers = _own(mine, places, policies, room)
    finally:
        os.environ.pop(SWITCH) if before is None else os.environ.update({SWITCH: before})
    return [
        replace(peer, name=f"{peer.name} at {level}", ask=there(peer.ask))
        for peer in peers
        if peer.ask is not None
    ]


def _transformers(target: str, model: Target) -> list[Peer]:
    from dspark.evaluation.peers import transformers_peers
    from dspark.targets.hf_loading import load_module

    return transformers_peers(load_module(target, model.dtype_name, str(model.device))[0], model)


def _run(
    model: Target, found: list[Peer], ids: list[list[int]], params: SamplingParams
) -> list[dict[str, Any]]:
    """`peers.run` with a bar on standard error."""
    from dspark.evaluation import peers

    with passing_bar() as bar:
        task = bar.add_task("starting", total=len(ids))

        def show(peer: str, done: int, all_: int) -> None:
            bar.update(task, completed=done, description=f"prompt {done + 1}/{all_}, {peer}")

        return peers.run(model, found, ids, params, show)


def table(facts: dict[str, Any]) -> Table:
    """The figures of the peers that are there as a table."""
    title = f"{facts['target']}, {facts['dtype']}, {facts['threads']} threads, greedy"
    shown = Table(title=escape(title))
    for heading in ("peer", "version"):
        shown.add_column(heading)
    for heading in ("tokens/s", "over plain", "accepted_length", "texts equal", "logit gap"):
        shown.add_column(heading, justify="right")
    for row in facts["rows"]:
        if row["missing"]:
            continue
        shown.add_row(
            escape(row["label"]),
            escape(row["version"]),
            _with_interval(row["tokens_per_s"], row["tokens_per_s_ci"], ".1f"),
            _with_interval(row["ratio_to_plain"], row["ratio_ci"], ".2f"),
            "-" if row["accepted_length"] is None else f"{row['accepted_length']:.2f}",
            f"{row['equal_texts']:.0%}",
            "-" if row["largest_gap"] is None else f"{row['largest_gap']:.4f}",
        )
    return shown


def _with_interval(value: float, ends: list[float], form: str) -> str:
    low, high = (format(end, form) for end in ends)
    return f"{value:{form}} ({low} to {high})"
