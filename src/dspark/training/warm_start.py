"""Warm start: a run that begins with a finished drafter's weights instead of fresh ones.

The recipe may ask for more than the drafter has. What is new adds nothing at the start: layers are
the identity, heads give no bias, further ranks of a head are empty. Weights alone are taken; the
optimiser begins anew.

Suffixes: V vocabulary of the target, Vd of the drafter, r rank of a sequential head, D hidden.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dspark.artifacts import sha256_file
from dspark.config import DrafterSection, TrainConfig
from dspark.drafters.checkpoint import CONFIG, SHARED_KEYS, WEIGHTS, read_checkpoint
from dspark.drafters.checkpoint_config import config_from_json, config_to_json
from dspark.drafters.drafter import Drafter, DrafterConfig
from dspark.drafters.shipped import shipped_drafter
from dspark.errors import CheckpointError, ConfigError
from dspark.training.snapshot import read_counters, reading

FAMILIES = (("dspark", "dflash"), ("eagle3",), ("mtp",))  # kinds with the same layers
VANILLA, GATED = "vanilla", "gated"
AS_VANILLA = (GATED, "residual_rnn", "refined", "selector")  # heads that can begin as that one
GROWING = (VANILLA, GATED, "selector")  # heads whose rank may rise
BY_SLOT = "refined"  # it has weights for each slot of a block

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
    family = next((kinds for kinds in FAMILIES if start.kind in kinds), (start.kind,))
    taps, wide = asked.target_layer_ids, asked.intermediate_size
    rank = asked.markov_rank if asked.kind == "dspark" else 0
    same_head = asked.markov_head_type == start.markov_head_type
    fixed = rank and start.markov_rank and same_head and start.markov_head_type not in GROWING
    by_slot = fixed and start.markov_head_type == BY_SLOT
    checks: list[tuple[str, Any, Any, bool]] = [
        ("kind", asked.kind, start.kind, asked.kind in family),
        ("num_layers", asked.num_layers, start.num_layers, asked.num_layers >= start.num_layers),
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
            wide is None or wide == start.intermediate_size,
        ),
        ("markov_rank", rank, start.markov_rank, not rank or rank >= start.markov_rank),
        ("markov_rank", rank, start.markov_rank, not fixed or rank == start.markov_rank),
        (
            "block_size",
            asked.block_size,
            start.block_size,
            not by_slot or asked.block_size == start.block_size,
        ),
        (
            "mask_token_id",
            asked.mask_token_id,
            start.mask_token_id,
            asked.mask_token_id in (None, start.mask_token_id),
        ),
    ]
    for key, mine, theirs, fits in checks:
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
        mine, theirs = getattr(shape, name), getattr(start, name)
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
    new = _head(drafter.config, start, drafter.d2t, theirs, own)
    with torch.no_grad():
        for name, mine in own.items():
            if name == "d2t" or name.startswith(("markov_head.", "confidence_head.")):
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
    if more:
        new.append(f"{more} more layers, each the identity")
    return new + _confidence(theirs, own)


def _added_layer(name: str, start: DrafterConfig) -> bool:
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return found is not None and int(found[1]) >= start.num_layers


def _confidence(theirs: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """The confidence head's weights; inputs that are new to it count for nothing."""
    names = ("confidence_head.proj.weight", "confidence_head.proj.bias")
    if names[0] not in own:
        return ["no confidence head"] if names[0] in theirs else []
    weight, bias = (own[name] for name in names)
    found = theirs.get(names[0])
    with torch.no_grad():
        weight.zero_()
        bias.zero_()
        if found is None or found.shape[1] > weight.shape[1]:
            return ["a confidence head that knows nothing"]
        weight[:, : found.shape[1]] = found.to(weight.dtype)
        bias.copy_(theirs[names[1]])
    return []


def _head(
    shape: DrafterConfig,
    start: Start,
    d2t: Tensor | None,
    theirs: dict[str, Tensor],
    own: dict[str, Tensor],
) -> list[str]:
    """The sequential head's weights; says what is new of it."""
    if not shape.markov_rank:
        return ["no sequential head"] if start.config.markov_rank else []
    table, out = own["markov_head.markov_w1.weight"], own["markov_head.markov_w2.weight"]
    before, kind = start.config.markov_head_type, shape.markov_head_type
    rank = start.config.markov_rank
    with torch.no_grad():
        out.zero_()  # without more, the head gives no bias
        if not rank:
            return [f"a {kind} head that gives no bias"]
        table[:, :rank].copy_(theirs["markov_head.markov_w1.weight"])
        kept = before == kind or (before == VANILLA and kind in AS_VANILLA)
        if not kept:
            return [f"a {kind} head that gives no bias, in place of a {before} one"]
        rows_mine, rows_theirs = _same_tokens(d2t, drafted_ids(start), len(out), shape.vocab_size)
        # A gate that knows nothing lets half through; the others are made to begin as vanilla.
        gate = kind == GATED and before != GATED
        scale = 2.0 if gate else 1.0
        old = theirs["markov_head.markov_w2.weight"]
        out[rows_mine, :rank] = scale * old[rows_theirs].to(out.dtype)
        for name in (n for n in own if n.startswith("markov_head.") and "markov_w" not in n):
            if gate or name in theirs:
                own[name].zero_()
            if name in theirs:  # [h ; W_1 row] or what comes of it: the old ones stand in front
                found = theirs[name]
                own[name][tuple(slice(n) for n in found.shape)] = found.to(own[name].dtype)
    new = [f"a {kind} head that begins as the {before} one"] if before != kind else []
    if shape.markov_rank > rank:
        new.append(f"{shape.markov_rank - rank} more ranks of the head, which give no bias")
    if len(rows_mine) < len(out):
        new.append(f"{len(out) - len(rows_mine)} tokens to draft that the head knows no bias for")
    return new


def _same_tokens(
    mine: Tensor | None, theirs: Tensor | None, size: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Rows of two draft vocabularies that are the same tokens."""
    own = torch.arange(size) if mine is None else mine.cpu()
    place_V = torch.full((vocab_size,), -1)
    other = torch.arange(vocab_size) if theirs is None else theirs
    place_V[other] = torch.arange(len(other))
    found = place_V[own]
    known = (found >= 0).nonzero()[:, 0]
    return known, found[known]


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
    return {"config": config_to_json(start.config, {}), "record": start.record}
