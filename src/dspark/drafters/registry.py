"""The drafters by name. Adding one is one folder with a ``Drafter`` subclass and a line here."""

from __future__ import annotations

from importlib import import_module

from dspark.drafters.config import DrafterConfig
from dspark.drafters.drafter import Drafter
from dspark.errors import ConfigError

# The kind, which is its folder's name, and the class in it.
FOLDERS = {
    "dspark": "DSparkDrafter",
    "dflash": "DFlashDrafter",
    "eagle3": "Eagle3Drafter",
    "mtp": "MTPDrafter",
}
DRAFTERS: dict[str, type[Drafter]] = {
    kind: getattr(import_module(f"dspark.drafters.{kind}"), name) for kind, name in FOLDERS.items()
}


def make_drafter(config: DrafterConfig) -> Drafter:
    """A drafter with fresh weights."""
    return DRAFTERS[config.kind](config)


def drafter_class(kind: str) -> type[Drafter]:
    """The drafter of this name.

    Raises:
        ConfigError: for a kind that is not registered.
    """
    if kind not in DRAFTERS:
        raise ConfigError(
            "Unknown drafter kind", found=kind, fix=f"Use one of {', '.join(DRAFTERS)}"
        )
    return DRAFTERS[kind]
