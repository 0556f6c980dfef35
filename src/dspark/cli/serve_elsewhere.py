"""`dspark serve --engine`: the same models on another engine."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dspark.api.names import find_drafter
from dspark.errors import ConfigError
from dspark.server.settings import KEYS_VARIABLE, read_api_keys
from dspark.targets.names import resolve_target

if TYPE_CHECKING:
    from dspark.export.plan import Wish

ONLY_ELSEWHERE = ("print_command", "tensor_parallel", "nodes", "node_rank", "head_address")
CARRIED = ("target", "drafter", "policy", "host", "port", "slots", "max_len", "dtype", "engine")
# What a plan is told as it stands on the command line.
SAME = frozenset({"host", "port", "slots", "dtype", "threads", "api_key_file"})
SAME |= {"tensor_parallel", "nodes", "node_rank", "head_address"}


def refuse_strays(ctx: typer.Context) -> None:
    """Refuse options that mean something only with --engine.

    Raises:
        ConfigError: naming the first of them.
    """
    for name in ONLY_ELSEWHERE:
        if name in _given(ctx):
            raise ConfigError(f"{_option(ctx, name)} is for other engines", fix="Add --engine")


def serve_elsewhere(ctx: typer.Context) -> None:
    """Print the commands, or become the other engine's server.

    Raises:
        ConfigError: an option without counterpart in the engine was given, or what `start` raises.
        IncompatibleDrafterError: the engine cannot read the drafter.
    """
    from dspark.export.engines import find_engine, plan
    from dspark.export.plan import script
    from dspark.export.start import start

    options, given = dict(ctx.params), _given(ctx)
    if "dtype" not in given:  # the other engine's machine is not known here
        options["dtype"] = "bfloat16"
    name: str = options["engine"]
    allowed = {*CARRIED, "print_command", *find_engine(name).options}
    for other in given:
        if other not in allowed:
            raise ConfigError(
                f"{_option(ctx, other)} has no counterpart in {name}", fix="Leave it out"
            )
    _check_keys(name, options)
    wish = _wish(name, options)
    if not options["print_command"]:
        start(plan(name, wish))
    ranks = [wish.node_rank] if "node_rank" in given else range(wish.nodes)
    plans = [plan(name, replace(wish, node_rank=rank)) for rank in ranks]
    sys.stdout.write(script(plans))


def _wish(name: str, options: dict[str, Any]) -> Wish:
    """The options in terms of the models: folders instead of names, files made where needed."""
    from dspark.drafters.checkpoint import read_checkpoint
    from dspark.export.engines import drafting
    from dspark.export.plan import Wish
    from dspark.export.standalone import export_folder, whole_drafter
    from dspark.targets.names import portable_name

    found = resolve_target(options["target"])
    target = str(found.absolute()) if isinstance(found, Path) else found
    folder = find_drafter(options["drafter"], options["target"])
    how, room, policy = None, options["max_len"], options["policy"]
    if folder is not None and policy != "off":
        config, _ = read_checkpoint(folder)
        how = drafting(name, folder, config, policy)
        how = replace(how, folder=whole_drafter(folder, target))
        room = min(room, config.max_positions)
    elif policy not in (None, "off"):
        raise ConfigError(f"Policy {policy} needs a drafter", fix="Name one, or use policy off")
    made = export_folder(folder, target) / "gguf"
    if name == "llama.cpp":
        made.mkdir(parents=True, exist_ok=True)
    return Wish(
        target=target,
        name=portable_name(options["target"]),
        drafting=how,
        max_len=room,
        made=made,
        **{key: options[key] for key in SAME},
    )


def _check_keys(name: str, options: dict[str, Any]) -> None:
    """Keys that nobody would ask for are worse than none."""
    if os.environ.get(KEYS_VARIABLE):
        raise ConfigError(
            f"{name} does not read {KEYS_VARIABLE}", fix="Unset it and use the engine's own way"
        )
    if options["api_key_file"] is not None:
        read_api_keys(options["api_key_file"])


def _given(ctx: typer.Context) -> list[str]:
    """Parameters that stand on the command line, by name."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def _option(ctx: typer.Context, name: str) -> str:
    return next(p.opts[0] for p in ctx.command.params if p.name == name)
