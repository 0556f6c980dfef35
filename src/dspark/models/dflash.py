"""The DFlash drafter: DSpark's backbone with the sequential and confidence heads off."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from dspark.models.drafter import DrafterConfig
from dspark.models.dspark import DSparkDrafter


class DFlashDrafter(DSparkDrafter):
    """Parallel block drafter: every slot is predicted without knowing the slots before it."""

    kind: ClassVar[str] = "dflash"

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(replace(config, markov_rank=0, confidence_head=False))
