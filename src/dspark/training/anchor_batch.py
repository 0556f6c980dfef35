"""Training batches of block drafters: anchors drawn from whole sequences (DSpark §3.3).

Suffixes: A anchors, K block slots, T context rows, N = A·K slots, M taps x D, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dspark.drafters.block.batch import AnchorBatch
from dspark.maths.anchors import draw_anchors, label_valid, slot_uniforms
from dspark.training.sequences import AnchorDraw, TrainingSequence


def make_anchor_batch(
    sequences: Sequence[TrainingSequence], draw: AnchorDraw, block_size: int
) -> AnchorBatch | None:
    """Anchors, labels and teacher rows of the given sequences, packed.

    Returns:
        None when no sequence has room for an anchor (answers of one token).
    """
    kept, parts, draws = [], [], []
    for sequence in sequences:
        ids, mask, first = sequence.ids_T, sequence.loss_mask, sequence.states.first
        anchors = draw_anchors(
            mask, draw.count, block_size, seed=draw.seed, epoch=draw.epoch, sample_id=sequence.key
        )
        if len(anchors) == 0:
            continue
        valid_AK = label_valid(mask, anchors, block_size)
        place_AK = anchors[:, None] + np.arange(block_size)
        labels_AK = np.where(valid_AK, ids[np.minimum(place_AK + 1, len(ids) - 1)], 0)
        teacher_AK = torch.from_numpy(np.minimum(place_AK, len(ids) - 1) - first).flatten()
        kept.append(sequence.states)
        draws.append(slot_uniforms(len(anchors), block_size, draw.seed, draw.epoch, sequence.key))
        parts.append((anchors, ids[anchors], labels_AK, valid_AK, teacher_AK))
    if not parts:
        return None
    chosen, anchor_ids, labels, valid, teacher = zip(*parts, strict=True)
    rows = [(s, t.to(s.last_TD.device)) for s, t in zip(kept, teacher, strict=True)]
    return AnchorBatch(
        lengths=[len(s.taps_TM) for s in kept],
        taps_TM=torch.cat([s.taps_TM for s in kept]),
        anchors=[torch.from_numpy(a) for a in chosen],
        anchor_ids_A=torch.from_numpy(np.concatenate(anchor_ids)),
        labels_AK=torch.from_numpy(np.concatenate(labels)),
        label_valid_AK=torch.from_numpy(np.concatenate(valid)),
        last_ND=torch.cat([s.last_TD.index_select(0, t) for s, t in rows]),
        log_norm_N=torch.cat([s.log_norm_T.index_select(0, t) for s, t in rows]),
        draws_AK=torch.from_numpy(np.concatenate(draws)),
    )
