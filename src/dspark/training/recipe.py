"""The recipe of a run: what must not change when it is taken up again, what others may see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dspark.artifacts import find_data, provenance
from dspark.config import TrainConfig, leaf_values
from dspark.errors import ConfigError
from dspark.targets.names import portable_name

# Keys of [run] that may change when a run is taken up again: how long, how fast, how often to tell.
FREE = {"minutes", "steps", "threads", "accumulate", "log_every"}
FREE |= {"checkpoint_every_minutes", "eval_every_minutes", "keep_at"}


def fixed_part(config: TrainConfig, mask_token_id: int | None) -> dict[str, Any]:
    """What must not change when a run is taken up again, as plain JSON values."""
    recipe = config.model_dump(
        mode="json", exclude={"out": True, "data": {"store", "bad_rows"}, "run": FREE}
    )
    recipe["mask"] = mask_token_id
    return json.loads(json.dumps(recipe))


def check_same(saved: dict[str, Any], mine: dict[str, Any], where: Path) -> None:
    """Refuse to continue another recipe.

    Raises:
        ConfigError: naming the first key that differs, with both values.
    """
    own = dict(leaf_values(mine))
    for key, theirs in leaf_values(saved):
        if key not in own or own[key] != theirs:
            raise ConfigError(
                f"{where} holds a run of another recipe",
                found=f"{key} was {theirs}, is {own.get(key)}",
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
