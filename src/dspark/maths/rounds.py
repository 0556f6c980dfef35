"""Rounds that a given text takes, counted exactly (offline; no decoding).

Given the text that came out, the rounds that made it are a Markov chain over its positions. A round
begins at an anchor, the last token there is, and commits the drafts that are accepted and one token
more. How likely a prefix of a draft was accepted, given the text, follows from p and q of the
text's own tokens:

- temperature 0: whether the drafter's best tokens are the text's;
- token verification: Π_{i≤k} min(1, q_i/p_i), since a token x of the text was an accepted draft
  with probability min(p, q)(x) and a correction with p(x) - min(p, q)(x);
- block verification: min_{j≤k} min(1, Π_{i≤j} q_i/p_i), which is Q(x_≤k) p_k / P(x_≤k) with p_k as
  in `block_verification`: it is accepted with p_k given its tokens, and the text behind it is P's
  whether it is accepted or not.

From the end backwards, with R = 0 behind the text and s_{K+1} = 0:

    R(t) = 1 + Σ_{m=0…K} (s_m - s_{m+1}) R(t + m + 1)

Suffixes: A anchors, in order, from the first token to the last but one; K block slots.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dspark.core import BLOCK

Floats = NDArray[np.float64]


def standing(log_ratio_AK: Floats, rule: str) -> Floats:
    """Probability that the first 1 … K drafts of each anchor were accepted, given the text, [A, K].

    Args:
        log_ratio_AK: log q(x) - log p(x) of the text's tokens behind each anchor; -inf where the
            drafter cannot say the token. Slots behind the text's end may hold anything.
        rule: of `core.RULES`.
    """
    if rule == BLOCK:
        return np.exp(np.minimum(np.minimum.accumulate(log_ratio_AK.cumsum(1), 1), 0.0))
    return np.exp(np.minimum(log_ratio_AK, 0.0).cumsum(1))


def standing_greedily(best_AK: NDArray[np.bool_]) -> Floats:
    """The same at temperature 0.

    Args:
        best_AK: the text's token is the drafter's best one.
    """
    return np.logical_and.accumulate(best_AK, 1).astype(np.float64)


def expected_rounds(standing_AK: Floats) -> float:
    """Expected rounds of a text, the token after the prompt not counted: it belongs to none.

    Args:
        standing_AK: of each anchor, s_1 … s_K; what lies behind the text's end is not looked at.
    """
    anchors, K = standing_AK.shape
    behind = np.zeros(anchors + K + 1)
    for t in range(anchors - 1, -1, -1):
        room = min(K, anchors - 1 - t)  # behind that, draft or correction, the text ends
        s = np.concatenate([[1.0], standing_AK[t, :room], [0.0]])
        behind[t] = 1 + float((s[:-1] - s[1:]) @ behind[t + 1 : t + room + 2])
    return float(behind[0]) if anchors else 0.0
