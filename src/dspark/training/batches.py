"""Which sequences and anchors each optimiser step sees: a pure function of the step number.

So a run that was killed goes on with exactly the batches it would have had.

Suffixes: A anchors, K block slots.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dspark.data.responses import Response
from dspark.maths.anchors import draw_anchors, label_valid
from dspark.models.dspark import AnchorBatch
from dspark.training.states import SequenceStates


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


def make_batch(
    responses: Sequence[Response],
    states: Sequence[SequenceStates],
    *,
    anchors_per_sequence: int,
    block_size: int,
    seed: int,
    epoch: int,
) -> AnchorBatch | None:
    """Anchors, labels and teacher rows of the given sequences, packed.

    Returns:
        None when no sequence has room for an anchor (answers of one token).
    """
    kept, parts = [], []
    for response, state in zip(responses, states, strict=True):
        ids = np.concatenate([response.prompt_ids, response.response_ids]).astype(np.int64)
        mask = np.zeros(len(ids), dtype=bool)
        mask[state.first :] = True
        anchors = draw_anchors(
            mask,
            anchors_per_sequence,
            block_size,
            seed=seed,
            epoch=epoch,
            sample_id=response.key,
        )
        if len(anchors) == 0:
            continue
        valid_AK = label_valid(mask, anchors, block_size)
        place_AK = anchors[:, None] + np.arange(block_size)
        labels_AK = np.where(valid_AK, ids[np.minimum(place_AK + 1, len(ids) - 1)], 0)
        teacher_AK = torch.from_numpy(np.minimum(place_AK, len(ids) - 1) - state.first).flatten()
        kept.append(state)
        parts.append((anchors, ids[anchors], labels_AK, valid_AK, teacher_AK))
    if not parts:
        return None
    chosen, anchor_ids, labels, valid, teacher = zip(*parts, strict=True)
    rows = list(zip(kept, teacher, strict=True))
    return AnchorBatch(
        lengths=[len(s.taps_TM) for s in kept],
        taps_TM=torch.cat([s.taps_TM for s in kept]),
        anchors=[torch.from_numpy(a) for a in chosen],
        anchor_ids_A=torch.from_numpy(np.concatenate(anchor_ids)),
        labels_AK=torch.from_numpy(np.concatenate(labels)),
        label_valid_AK=torch.from_numpy(np.concatenate(valid)),
        last_ND=torch.cat([s.last_TD.index_select(0, t) for s, t in rows]),
        log_norm_N=torch.cat([s.log_norm_T.index_select(0, t) for s, t in rows]),
    )
