"""The recipe of a run: reading it, what a resumed run must keep of it, what others may see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dspark.artifacts import find_data, provenance
from dspark.config import (
    DrafterSection,
    Layer,
    TrainConfig,
    checked,
    leaf_values,
    read_layers,
    recipe_model,
)
from dspark.drafters.registry import DRAFTERS, drafter_class
from dspark.errors import ConfigError
from dspark.targets.names import portable_name

DEFAULT_KIND = DrafterSection().kind
# Keys of [run] that may change when a run is taken up again: how long, how fast, how often to tell.
FREE = {"minutes", "steps", "threads", "accumulate", "log_every"}
FREE |= {"checkpoint_every_minutes", "eval_every_minutes", "keep_at"}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A recipe from a file and all that it extends; `[drafter]` has the keys of its kind.

    A file that names another kind than the files it extends leaves behind what they say for the
    former kind alone.

    Args:
        overrides: as `config.load_config` takes them.

    Raises:
        ConfigError: as `config.load_config`; and for a kind that is not registered.
    """
    layers: list[Layer] = []
    kind = DEFAULT_KIND
    for layer in read_layers(path, overrides):
        own = _drafter(layer.tree).get("kind", kind)
        if own != kind and isinstance(own, str):
            layers, kind = [_without(lower, _foreign(own)) for lower in layers], own
        layers.append(layer)
    return checked(layers, recipe_model(drafter_class(kind).Recipe), str(path))


def make_recipe(tree: dict[str, Any]) -> TrainConfig:
    """A recipe from nested tables.

    Raises:
        ConfigError: for a kind that is not registered.
        pydantic.ValidationError: for a key or value that does not fit.
    """
    kind = _drafter(tree).get("kind", DEFAULT_KIND)
    return recipe_model(drafter_class(kind).Recipe).model_validate(tree)


def _drafter(tree: dict[str, Any]) -> dict[str, Any]:
    found = tree.get("drafter")
    return found if isinstance(found, dict) else {}


def _foreign(kind: str) -> set[str]:
    """Keys of `[drafter]` that other kinds have and this one has not."""
    others = {key for drafter in DRAFTERS.values() for key in drafter.Recipe.model_fields}
    return others - drafter_class(kind).Recipe.model_fields.keys()


def _without(layer: Layer, keys: set[str]) -> Layer:
    said = _drafter(layer.tree)
    kept = {key: value for key, value in said.items() if key not in keys}
    return layer if kept == said else replace(layer, tree=layer.tree | {"drafter": kept})


def fixed_part(config: TrainConfig, from_texts: dict[str, Any]) -> dict[str, Any]:
    """What must not change when a run is taken up again, as plain JSON values.

    Args:
        from_texts: what of the drafter's shape the texts decide.
    """
    recipe = config.model_dump(
        mode="json", exclude={"out": True, "data": {"store", "bad_rows"}, "run": FREE}
    )
    return json.loads(json.dumps(recipe | from_texts))


def check_same(saved: dict[str, Any], mine: dict[str, Any], where: Path) -> None:
    """Refuse to continue another recipe.

    Raises:
        ConfigError: naming the first key that differs, with both values.
    """
    own = dict(leaf_values(mine))
    for key, theirs in leaf_values(saved):
        if own.get(key, theirs) != theirs:
            raise ConfigError(
                f"{where} holds a run of another recipe",
                found=f"{key} was {theirs}, is {own[key]}",
                fix="Give another `out` folder, or delete this one to start anew",
            )


def portable(config: TrainConfig) -> dict[str, Any]:
    """The recipe with folders of this machine left out: a drafter is for others too."""
    fields = config.model_dump(mode="json")
    fields["target"] = portable_name(config.target)
    fields["out"] = Path(config.out).name
    fields["data"]["responses"] = [Path(name).name for name in config.data.responses]
    if config.drafter.start is not None:
        fields["drafter"]["start"] = Path(config.drafter.start).name
    if config.data.store is not None:
        fields["data"]["store"] = Path(config.data.store).name
    return fields


def drafter_record(
    config: TrainConfig, training: dict[str, Any], start: dict[str, Any] | None = None
) -> str:
    """`provenance.json` of a drafter: inputs, recipe, how far ``training`` went, and the drafter
    that it started from, if it did."""
    record = provenance(
        "dspark train",
        {"run": config.run.seed, "data": config.data.seed},
        [find_data(source) for source in config.data.responses],
    )
    record |= {"config": portable(config), "training": training}
    record |= {"start": start} if start else {}
    return json.dumps(record, indent=2) + "\n"
