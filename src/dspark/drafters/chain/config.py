"""Configuration of chain drafters."""

from __future__ import annotations

from dataclasses import dataclass

from dspark.drafters.config import DrafterConfig
from dspark.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ChainConfig(DrafterConfig):
    """Shape of a chain drafter, which has one layer."""

    num_layers: int = 1

    def __post_init__(self) -> None:
        if self.num_layers != 1:
            raise ConfigError(
                f"A drafter of kind {self.kind} has one layer",
                found=f"drafter.num_layers {self.num_layers}",
                fix="Set drafter.num_layers = 1",
            )
