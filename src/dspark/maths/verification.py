"""The lossless accept-or-correct test (Leviathan et al. 2023; docs/algorithms.md, "Verification").

A drafted token x is kept with probability min(1, p_t(x) / p_d(x)); the first one that is not is
replaced by a draw from the normalised positive part of p_t - p_d. Whatever the drafter proposes,
the committed text is distributed as the target's own (DSpark §3.2.2 needs exactly this). Suffixes:
R requests, K block slots (K + 1 for the target, which also covers the place after the last draft
token), V vocabulary of the target, Vd of the drafter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark.core import Verdict
from dspark.maths.sampling import draw

Lengths = Sequence[int] | NDArray[np.int64] | Tensor
Uniforms = NDArray[np.float64] | Tensor


def verify(
    target_probs_RKV: Tensor,
    draft_probs_RKV: Tensor,
    draft_ids_RK: Tensor,
    verify_len_R: Lengths,
    accept_u_RK: Uniforms,
    final_u_R: Uniforms,
    d2t: Tensor | None = None,
) -> Verdict:
    """Accept a prefix of every request's draft and draw the token that follows it.

    Slots at or past a request's verify length are never looked at, in no argument.

    Args:
        target_probs_RKV: [R, K + 1, V] p_t; entry k is the distribution of draft token k + 1,
            after temperature, top-k and top-p.
        draft_probs_RKV: [R, K, Vd] p_d, the very distributions the draft was drawn from.
        draft_ids_RK: [R, K] drafted tokens, ids of the target's vocabulary.
        verify_len_R: [R] draft tokens to verify, 0 to K; 0 is plain decoding.
        accept_u_RK: [R, K] uniform numbers in [0, 1) for the tests, float64.
        final_u_R: [R] uniform numbers in [0, 1) for the correction or bonus, float64.
        d2t: [Vd] target id of every draft id, int64, for a reduced draft vocabulary; p_d is zero
            elsewhere. Without it both vocabularies are the same.

    Returns:
        Accepted counts and, per request, the correction or bonus token.

    Raises:
        EngineError: a distribution that must be drawn from has no mass or is not finite.
    """
    R, K = draft_ids_RK.shape
    device = target_probs_RKV.device
    verify_len_R = torch.as_tensor(verify_len_R, dtype=torch.int64, device=device)
    verified_RK = torch.arange(K, device=device) < verify_len_R[:, None]
    ids_RK = draft_ids_RK.masked_fill(~verified_RK, 0)

    target_RK = target_probs_RKV[:, :K].gather(2, ids_RK[..., None])[..., 0].double()
    draft_RK = drafted_probability(draft_probs_RKV, ids_RK, d2t, target_probs_RKV.shape[2])
    accept_u_RK = torch.as_tensor(accept_u_RK, dtype=torch.float64, device=device)
    # Strict, and without dividing: a token the target rules out is never kept, not even at u = 0.
    kept_RK = verified_RK & (accept_u_RK * draft_RK < target_RK)
    accepted_R = kept_RK.cumprod(dim=1).sum(dim=1)

    final_RV = target_probs_RKV[torch.arange(R, device=device), accepted_R]
    rejected = (accepted_R < verify_len_R).nonzero()[:, 0]
    if rejected.numel():
        draft_SV = draft_probs_RKV[rejected, accepted_R[rejected]]
        final_RV[rejected] = residual(final_RV[rejected], draft_SV, d2t)
    return Verdict(accepted_R.tolist(), draw(final_RV, final_u_R).tolist())


def verify_greedy(target_ids_RK: Tensor, draft_ids_RK: Tensor, verify_len_R: Lengths) -> Verdict:
    """The limit of `verify` at temperature 0: keep what the target would have chosen itself.

    Args:
        target_ids_RK: [R, K + 1] the target's best token at every position, int64.
        draft_ids_RK: [R, K] drafted tokens, ids of the target's vocabulary, int64.
        verify_len_R: [R] draft tokens to verify, 0 to K.

    Returns:
        Accepted counts and, per request, the target's token after the accepted prefix.
    """
    accepted_R, next_id_R = [], []
    lengths = torch.as_tensor(verify_len_R).tolist()
    rows = zip(target_ids_RK.tolist(), draft_ids_RK.tolist(), lengths, strict=True)
    for target_K, draft_K, length in rows:
        accepted = 0
        while accepted < length and target_K[accepted] == draft_K[accepted]:
            accepted += 1
        accepted_R.append(accepted)
        next_id_R.append(target_K[accepted])
    return Verdict(accepted_R, next_id_R)


def overlap(target_probs_RKV: Tensor, draft_probs_RKV: Tensor, d2t: Tensor | None) -> Tensor:
    """c*_k = Σ_v min(p_d, p_t): how likely slot k's token is accepted if those before were, [R, K].

    Args:
        target_probs_RKV, draft_probs_RKV: [R, K, V] of the target, of the draft vocabulary.
        d2t: target id of each draft-vocabulary entry, or None.
    """
    same_RKV = target_probs_RKV if d2t is None else target_probs_RKV[..., d2t]
    return torch.minimum(same_RKV, draft_probs_RKV).sum(-1)


def drafted_probability(
    draft_probs_RKV: Tensor, ids_RK: Tensor, d2t: Tensor | None, V: int
) -> Tensor:
    """p_d of the target ids `ids_RK`, zero outside the draft vocabulary; float64 [R, K]."""
    if d2t is None:
        return draft_probs_RKV.gather(2, ids_RK[..., None])[..., 0].double()
    t2d_V = torch.full((V,), -1, dtype=torch.int64, device=d2t.device)
    t2d_V[d2t] = torch.arange(len(d2t), device=d2t.device)
    draft_ids_RK = t2d_V[ids_RK]
    probs_RK = draft_probs_RKV.gather(2, draft_ids_RK.clamp(min=0)[..., None])[..., 0]
    return probs_RK.double().masked_fill(draft_ids_RK < 0, 0.0)


def residual(target_SV: Tensor, draft_SV: Tensor, d2t: Tensor | None) -> Tensor:
    """max(p_t - p_d, 0) for the rejected requests (S of them), not normalised.

    Without any mass left (equal distributions, where only rounding can reject) it is p_t.

    Args:
        target_SV, draft_SV: [S, V] of the target, [S, Vd] of the draft vocabulary.
    """
    if d2t is None:
        left_SV = target_SV - draft_SV
    else:
        left_SV = target_SV.index_add(1, d2t, draft_SV, alpha=-1)
    left_SV.clamp_(min=0)
    empty_S1 = left_SV.amax(dim=1, keepdim=True) <= 0
    return torch.where(empty_S1, target_SV, left_SV)
