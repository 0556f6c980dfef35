"""Training batches of chain drafters: every position of an answer (arXiv 2503.01840).

Suffixes: T rows of the drafter's context, Q of them that learn, K chain steps, N = Q·K, M width of
the target's feature, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dspark.drafters.chain.batch import PositionBatch
from dspark.training.sequences import AnchorDraw, TrainingSequence


def make_position_batch(
    sequences: Sequence[TrainingSequence], draw: AnchorDraw, steps: int
) -> PositionBatch | None:
    """All positions of the given answers; nothing is drawn.

    Returns:
        None when no answer has a token to learn (answers of one token, the first of which is
        never drafted).
    """
    kept = [s for s in sequences if len(s.ids_T) - s.states.first >= 2 and s.states.first >= 1]
    if not kept:
        return None
    start, learners, rows, tokens, teacher = 0, [], [], [], []
    for sequence in kept:
        first, count = sequence.states.first - 1, len(sequence.ids_T) - sequence.states.first - 1
        place_QK = np.arange(first, first + count)[:, None] + 1 + np.arange(steps + 1)
        inside = place_QK < len(sequence.ids_T)
        last = len(sequence.ids_T) - 1
        tokens_QK = np.where(inside, sequence.ids_T[np.minimum(place_QK, last)], 0)
        learned_QK = inside & sequence.loss_mask[np.minimum(place_QK, last)]
        tokens.append((tokens_QK, np.logical_and.accumulate(learned_QK, axis=1)))
        teacher.append(torch.from_numpy(np.minimum(place_QK[:, :-1], last) - first - 1).flatten())
        learners.append((first, count))
        rows.append(np.arange(start + first, start + first + count))
        start += len(sequence.ids_T) - 1
    ids_QK = torch.from_numpy(np.concatenate([t for t, _ in tokens]))
    learned_QK = torch.from_numpy(np.concatenate([learned for _, learned in tokens]))
    pairs = [(s.states, t.to(s.states.last_TD.device)) for s, t in zip(kept, teacher, strict=True)]
    return PositionBatch(
        lengths=[len(s.ids_T) - 1 for s in kept],
        learners=learners,
        taps_TM=torch.cat([s.states.taps_TM[:-1] for s in kept]),
        next_ids_T=torch.from_numpy(np.concatenate([s.ids_T[1:] for s in kept])),
        positions_T=torch.cat([torch.arange(len(s.ids_T) - 1) for s in kept]),
        rows_Q=torch.from_numpy(np.concatenate(rows)),
        tokens_QK=ids_QK[:, :-1],
        labels_QK=ids_QK[:, 1:],
        label_valid_AK=learned_QK[:, 1:],
        last_ND=torch.cat([s.last_TD.index_select(0, t) for s, t in pairs]),
        log_norm_N=torch.cat([s.log_norm_T.index_select(0, t) for s, t in pairs]),
    )
