"""Which kind of drafter a ``config.json`` describes: DeepSpec's fields, an architecture, a kind."""

from __future__ import annotations

from typing import Any

from dspark.drafters.config import DrafterConfig
from dspark.drafters.fields import Fields
from dspark.drafters.registry import DRAFTERS
from dspark.errors import CheckpointError

UNSUPPORTED = {"Gemma4DSparkModel": "its layers have another shape than this backbone"}


def config_from_json(fields: Any, where: str = "config.json") -> DrafterConfig:
    """The configuration that a file's fields describe.

    Args:
        where: the file, for its mistakes.

    Raises:
        CheckpointError: for an architecture that is not ours or a missing or unusable field; it
            names file, key and value.
    """
    if not isinstance(fields, dict):
        raise CheckpointError(
            f"{where} holds no fields", found=type(fields).__name__, fix="Export it again"
        )
    given = Fields(fields, where)
    return _class_of(given).from_json(given)


def _class_of(given: Fields) -> type[DrafterConfig]:
    architecture = given.architecture()
    every = [drafter.Config for drafter in DRAFTERS.values()]
    same = [config for config in every if config.architecture == architecture]
    if not same:
        raise CheckpointError(
            f"{given.where}: cannot read a drafter of architecture {architecture}",
            found=UNSUPPORTED.get(architecture, "it is not a drafter in DeepSpec's layout"),
            fix=f"Supported: {', '.join(dict.fromkeys(c.architecture for c in every))}",
        )
    if kind := given.text("dspark_kind", default=""):
        named = [config for config in same if config.kind == kind]
        if not named:
            raise CheckpointError(
                f"{given.where}: dspark_kind is no kind of {architecture} known here",
                found=kind,
                fix=f"Known are {', '.join(config.kind for config in same)}",
            )
        return named[0]
    return next(config for config in same if config.recognises(given))
