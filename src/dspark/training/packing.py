"""Packs sequences into the kind of batch that a drafter's loss takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dspark.drafters.block.batch import AnchorBatch
from dspark.drafters.chain.batch import PositionBatch
from dspark.drafters.drafter import Drafter
from dspark.drafters.training_batch import TrainingBatch
from dspark.training.anchor_batch import make_anchor_batch
from dspark.training.position_batch import make_position_batch
from dspark.training.sequences import AnchorDraw, TrainingSequence

MAKERS: dict[Any, Callable[[Sequence[TrainingSequence], AnchorDraw, int], TrainingBatch | None]] = {
    AnchorBatch: make_anchor_batch,
    PositionBatch: make_position_batch,
}


def pack(
    drafter: Drafter, sequences: Sequence[TrainingSequence], draw: AnchorDraw
) -> TrainingBatch | None:
    """One batch of the drafter's kind (`Drafter.Batch`); None when nothing can be learned."""
    return MAKERS[drafter.Batch](sequences, draw, drafter.config.block_size)
