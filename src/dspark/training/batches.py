"""Which sequences each optimiser step sees, and in which pass: a pure function of the step number.

So a run that was killed goes on with exactly the batches it would have had.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dspark.data.responses import Response
from dspark.data.states import SequenceStates
from dspark.training.sequences import TrainingSequence


@dataclass(frozen=True, slots=True)
class Visit:
    """The sequences of one optimiser step, and the number of the pass that draws their anchors."""

    indices: tuple[int, ...]
    epoch: int


def visits(
    sizes: Sequence[int], budget: int, per_step: int, passes_per_window: int, seed: int
) -> Iterator[Visit]:
    """Endless order of steps.

    Each epoch shuffles all sequences and cuts them into windows whose states fit the budget; a
    window is gone through several times (fresh order, fresh anchors) before the next replaces it,
    so the target's forward is paid once per window and not once per pass.

    Args:
        sizes: bytes that each sequence's states take.
        budget: bytes that may be kept.
        per_step: sequences of a step.
        passes_per_window: passes over a window, unless one window holds everything.
        seed: of the shuffles.
    """
    epoch = 0
    while True:
        order = list(range(len(sizes)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        windows = _windows(order, sizes, budget)
        passes = 1 if len(windows) == 1 else passes_per_window
        for number, window in enumerate(windows):
            for turn in range(passes):
                local = list(window)
                random.Random(f"{seed}/{epoch}/{number}/{turn}").shuffle(local)
                for start in range(0, len(local), per_step):
                    yield Visit(tuple(local[start : start + per_step]), epoch * passes + turn)
        epoch += 1


def _windows(order: list[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    windows: list[list[int]] = [[]]
    held = 0
    for index in order:
        if windows[-1] and held + sizes[index] > budget:
            windows.append([])
            held = 0
        windows[-1].append(index)
        held += sizes[index]
    return windows


def share(indices: Sequence[int], rank: int, world: int, pieces: int) -> list[Sequence[int]]:
    """One process's part of a step's sequences, as at most ``pieces`` micro-batches.

    The parts of all processes together hold each sequence once; no micro-batch is empty.
    """
    mine = indices[rank::world]
    bounds = [len(mine) * n // pieces for n in range(pieces + 1)]
    return [mine[start:end] for start, end in pairwise(bounds) if start < end]


def training_sequences(
    responses: Sequence[Response], states: Sequence[SequenceStates]
) -> list[TrainingSequence]:
    """Answers with their states, as drafters take them."""
    return [
        TrainingSequence(
            response.key,
            np.concatenate([response.prompt_ids, response.response_ids]).astype(np.int64),
            state,
            response.context,
        )
        for response, state in zip(responses, states, strict=True)
    ]
