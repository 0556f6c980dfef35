"""Logits of whole blocks along a known text, some anchors at a time.

Suffixes: N anchors, K block slots, r Markov rank, V draft vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from dspark.drafters.block.heads import MarkovHead
from dspark.drafters.block.losses import BlockOutputs
from dspark.drafters.shared import SharedWeights
from dspark.maths.candidates import best, spread


def block_logits(
    out: BlockOutputs,
    shared: SharedWeights,
    head: MarkovHead | None,
    candidates: int,
    rows: int,
) -> Iterator[Tensor]:
    """What drafting would draw from, had it drawn the text: float32 [≤ rows, K, V] each.

    Args:
        head: not packed.
        candidates: C, that the head scores alone; 0 for all tokens.
    """
    for start in range(0, len(out.hidden_AKD), rows):
        part = slice(start, start + rows)
        logits_NKV = shared.logits(out.hidden_AKD[part]).float()
        if head is not None and out.features_AKr is not None:
            logits_NKV = _scored(logits_NKV, out.features_AKr[part], head, candidates)
        yield logits_NKV


def _scored(base_NKV: Tensor, features_NKr: Tensor, head: MarkovHead, candidates: int) -> Tensor:
    """Parallel logits with the head's bias; all but the candidates ruled out, if there are such."""
    if not candidates:
        return base_NKV + head.bias(features_NKr)
    flat_NV = base_NKV.flatten(0, 1)
    values_NC, ids_NC = best(flat_NV, candidates)
    scores_NC = values_NC + head.bias_of(features_NKr.flatten(0, 1), ids_NC).float()
    return spread(scores_NC, ids_NC, flat_NV.shape[1]).view(base_NKV.shape)
