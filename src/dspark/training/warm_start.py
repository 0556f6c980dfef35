"""Warm start: a run that begins with a finished drafter's weights instead of fresh ones.

The recipe may ask for more than the drafter has. What is new adds nothing at the start: layers are
the identity, heads give no bias, further ranks of a head are empty. Weights alone are taken; the
optimiser begins anew.

Suffixes: Vd draft vocabulary.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dspark.artifacts import sha256_file
from dspark.config import DrafterSection, TrainConfig
from dspark.drafters.checkpoint import CONFIG, SHARED_KEYS, WEIGHTS, read_checkpoint
from dspark.drafters.checkpoint_config import config_from_json
from dspark.drafters.config import Check, DrafterConfig
from dspark.drafters.drafter import Drafter
from dspark.drafters.registry import drafter_class
from dspark.drafters.shipped import shipped_drafter
from dspark.errors import CheckpointError, ConfigError
from dspark.training.snapshot import read_counters, reading

_log = logging.getLogger("dspark.training")


@dataclass(frozen=True, slots=True)
class Start:
    """The drafter that a run begins with.

    Attributes:
        config: its own.
        tensors: its weights under the names of its file; empty where the run has gone on since.
        record: for provenance: `name`, `kind`, `sha256` of its weights, and what of `training`
            its own provenance tells.
    """

    config: DrafterConfig
    tensors: dict[str, Tensor] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def find_start(name: str, target: str) -> Path:
    """Folder of the drafter meant by a shipped name, a drafter's folder or a run's.

    Raises:
        CheckpointError: there is none.
    """
    shipped = shipped_drafter(target, name)
    for folder in (shipped, Path(name) / "drafter", Path(name)):
        if folder is not None and (folder / CONFIG).is_file():
            return folder
    raise CheckpointError(
        f"There is no drafter {name} to start from",
        fix="Give a drafter's folder, a run's, or a shipped name (dspark)",
    )


def read_start(config: TrainConfig) -> Start | None:
    """The drafter that the recipe starts from, checked against it; None for a fresh one.

    Raises:
        CheckpointError: it cannot be read.
        ConfigError: the recipe cannot go on from it.
    """
    if config.drafter.start is None:
        return None
    folder = find_start(config.drafter.start, config.target)
    shape, tensors = read_checkpoint(folder)
    check_continues(config.drafter, shape)
    record: dict[str, Any] = {"name": Path(config.drafter.start).name, "kind": shape.kind}
    record |= {"sha256": sha256_file(folder / WEIGHTS)} | _trained(folder)
    split = {"held_out_share": config.data.held_out_share, "seed": config.data.seed}
    if any(record.get(key, value) != value for key, value in split.items()):
        _log.warning(
            "%s held out other answers than this recipe: it may have been trained on those that "
            "are held out now, and held-out figures will flatter",
            record["name"],
        )
    return Start(shape, tensors, record)


def _trained(folder: Path) -> dict[str, Any]:
    """What the drafter's training took, as far as its provenance says, and its own start."""
    try:
        found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        training = found["training"]
        told = {key: training[key] for key in ("step", "anchors", "elapsed_s") if key in training}
        data = found["config"]["data"]
        told |= {key: data[key] for key in ("held_out_share", "seed") if key in data}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return told | ({"start": found["start"]} if found.get("start") else {})


def check_continues(asked: DrafterSection, start: DrafterConfig) -> None:
    """Refuse a recipe that cannot go on from a drafter.

    Raises:
        ConfigError: naming the key, with both values.
    """
    shape, layers, wide = (
        drafter_class(asked.kind).Config,
        asked.num_layers,
        asked.intermediate_size,
    )
    taps = getattr(asked, "target_layer_ids", None)
    checks: list[Check] = [
        ("kind", asked.kind, start.kind, shape.same_layers(start)),
        ("num_layers", layers, start.num_layers, layers >= start.num_layers),
        (
            "target_layer_ids",
            taps,
            list(start.target_layer_ids),
            taps is None or tuple(taps) == start.target_layer_ids,
        ),
        (
            "intermediate_size",
            wide,
            start.intermediate_size,
            wide in (None, start.intermediate_size),
        ),
    ]
    for key, mine, theirs, fits in chain(checks, shape.continuing(asked, start)):
        if not fits:
            raise ConfigError(
                f"The recipe cannot go on from that drafter: drafter.{key}",
                found=f"recipe {mine}, drafter to start from {theirs}",
                fix=f"Set drafter.{key} to what that drafter has, or train without --from",
            )


def check_shape(shape: DrafterConfig, start: DrafterConfig) -> None:
    """Refuse what depends on the target: its sizes, and those that a foreign checkpoint chose.

    Raises:
        ConfigError: naming the value, on both sides.
    """
    sizes = ("hidden_size", "vocab_size", "num_target_layers", "target_layer_ids")
    layers = ("intermediate_size", "num_heads", "num_kv_heads", "head_dim", "mask_token_id")
    for name in (*sizes, *layers, "rope_theta", "rms_norm_eps"):
        mine, theirs = getattr(shape, name, None), getattr(start, name, None)
        if mine != theirs:
            raise ConfigError(
                f"The recipe cannot go on from that drafter: {name}",
                found=f"recipe {mine}, drafter to start from {theirs}",
                fix="Start from a drafter of this target and shape, or train without --from",
            )


def drafted_ids(start: Start) -> Tensor | None:
    """Target ids of its reduced draft vocabulary, [Vd]; None for the whole one."""
    offset = start.tensors.get("d2t")
    return None if offset is None else offset.long() + torch.arange(len(offset))


def begin(drafter: Drafter, start: Start) -> list[str]:
    """Put a drafter's weights into a fresh one of a shape that goes on from it.

    Returns:
        What is new, in words.

    Raises:
        CheckpointError: a tensor of the start is missing or of another shape than its config says.
    """
    own = drafter.state_dict()
    theirs = {
        (key if key in own or f"backbone.{key}" not in own else f"backbone.{key}"): value
        for key, value in start.tensors.items()
        if key not in (*SHARED_KEYS, "t2d", "d2t")
    }
    with torch.no_grad():
        for name, mine in own.items():
            if name == "d2t" or name.startswith(drafter.head_modules):
                continue
            if _added_layer(name, start.config):
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    mine.zero_()
                continue
            found = theirs.get(name)
            if found is None or found.shape != mine.shape:
                raise CheckpointError(
                    "The drafter to start from does not have the weights that its config says",
                    found=f"{name} {'missing' if found is None else tuple(found.shape)}",
                )
            mine.copy_(found)
    more = drafter.config.num_layers - start.config.num_layers
    new = [f"{more} more layers, each the identity"] if more else []
    return new + drafter.begin_heads(start.config, theirs, drafted_ids(start))


def _added_layer(name: str, start: DrafterConfig) -> bool:
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return found is not None and int(found[1]) >= start.num_layers


def begun(config: TrainConfig) -> tuple[TrainConfig, Start | None]:
    """The recipe and what the run begins with; a run that is taken up keeps what it began with.

    There the drafter it started from is not needed again: its weights have gone on.

    Raises:
        ConfigError: the run that lies in `out` began with another drafter.
        CheckpointError: the drafter, or the run's state, cannot be read.
    """
    saved = read_counters(Path(config.out))
    if saved is None:
        return config, read_start(config)
    with reading(Path(config.out)):
        name, kept = saved["recipe"]["drafter"].get("start"), saved.get("start")
        start = (
            None if kept is None else Start(config_from_json(kept["config"]), {}, kept["record"])
        )
    if config.drafter.start not in (None, name):
        raise ConfigError(
            f"{config.out} holds a run of another recipe",
            found=f"drafter.start was {name}, is {config.drafter.start}",
            fix="Give another `out` folder, or delete this one to start anew",
        )
    section = config.drafter.model_copy(update={"start": name})
    return config.model_copy(update={"drafter": section}), start


def to_save(start: Start | None) -> dict[str, Any] | None:
    """What of a start a run's state keeps, as plain JSON values."""
    if start is None:
        return None
    return {"config": start.config.to_json({}), "record": start.record}
