"""The drafters by name. Adding one is one file with a ``Drafter`` subclass and a line here."""

from __future__ import annotations

from dspark.drafters.dflash import DFlashDrafter
from dspark.drafters.drafter import Drafter, DrafterConfig
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.mtp import MTPDrafter
from dspark.errors import ConfigError

DRAFTERS: dict[str, type[Drafter]] = {
    cls.kind: cls for cls in (DSparkDrafter, DFlashDrafter, Eagle3Drafter, MTPDrafter)
}


def make_drafter(config: DrafterConfig) -> Drafter:
    """A drafter with fresh weights.

    Raises:
        ConfigError: for a kind that is not registered.
    """
    return drafter_class(config.kind)(config)


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
