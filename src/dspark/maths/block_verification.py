"""Block verification: a draft is verified as a whole (Sun et al., arXiv 2403.10444).

With P the target's and Q the drafter's distribution along the draft x_1 … x_γ of a request, γ what
is verified of it:

    p_0 = 1,  p_i = min(1, p_{i-1} P(x_i) / Q(x_i))
    Z_i = Σ_x max(p_i P(x) - Q(x), 0)                 of the slot after x_i
    h_i = Z_i / (Z_i + 1 - p_i) for i < γ,  h_γ = p_γ
    τ = the largest i with u_i < h_i, 0 without one

x_1 … x_τ are accepted; after τ = γ the bonus comes from P, else the next token from max(p_τ P - Q,
0). The text is distributed as the target's own, and no rule that sees the same drafts keeps more of
them on average. Whatever γ is, prefix i is accepted with probability p_i given its tokens, so γ may
depend on tokens as under `verification.verify`: whether x_i is verified on x_<i alone.

Suffixes as in `verification`: R requests, K block slots, V and Vd vocabularies; S places in drafts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.core import Verdict
from dspark.maths.sampling import draw
from dspark.maths.verification import Lengths, Uniforms, drafted_probability, residual

_HUGE = 1e300  # a ratio this large is as good as none; infinite ones times 0 would be NaN


def verify_block(
    target_probs_RKV: Tensor,
    draft_probs_RKV: Tensor,
    draft_ids_RK: Tensor,
    verify_len_R: Lengths,
    accept_u_RK: Uniforms,
    final_u_R: Uniforms,
    d2t: Tensor | None = None,
) -> Verdict:
    """Accept a prefix of every request's draft and draw the token that follows it.

    Arguments, result and errors are those of `verification.verify`; u_i is the number of slot i.
    """
    R, K = draft_ids_RK.shape
    device = target_probs_RKV.device
    verify_len_R = torch.as_tensor(verify_len_R, dtype=torch.int64, device=device)
    length_R1, slots_K = verify_len_R[:, None], torch.arange(1, K + 1, device=device)
    kept_RI = prefix_probability(
        target_probs_RKV[:, :K], draft_probs_RKV, draft_ids_RK, d2t, slots_K <= length_R1
    )
    accept_u_RK = torch.as_tensor(accept_u_RK, dtype=torch.float64, device=device)

    # h_i as left / (left + gone), never divided. Where p_i is 1, h_i is 1 whatever is left.
    left_RK = kept_RI[:, 1:].clone()
    gone_RK = (1 - left_RK).masked_fill(slots_K == length_R1, 0.0)
    open_RK = (slots_K < length_R1) & (gone_RK > 0) & (left_RK > 0)
    r_S, i_S = open_RK.nonzero(as_tuple=True)
    if len(r_S):
        left_RK[r_S, i_S] = _mass_left(
            left_RK[r_S, i_S],
            target_probs_RKV[r_S, i_S + 1],
            draft_probs_RKV[r_S, i_S + 1],
            d2t,
        )
    whole_RK = torch.where(slots_K == length_R1, torch.ones_like(left_RK), left_RK + gone_RK)
    ends_RK = (slots_K <= length_R1) & (accept_u_RK * whole_RK < left_RK)
    accepted_R = torch.nn.functional.pad(ends_RK * slots_K, (1, 0)).amax(1)

    rows_R = torch.arange(R, device=device)
    final_RV = target_probs_RKV[rows_R, accepted_R]
    cut = (accepted_R < verify_len_R).nonzero()[:, 0]
    if cut.numel():
        kept_S1 = kept_RI[cut, accepted_R[cut]][:, None].to(final_RV.dtype)
        final_RV[cut] = residual(
            final_RV[cut] * kept_S1, draft_probs_RKV[cut, accepted_R[cut]], d2t
        )
    return Verdict(accepted_R.tolist(), draw(final_RV, final_u_R).tolist())


def prefix_probability(
    target_probs_RKV: Tensor,
    draft_probs_RKV: Tensor,
    draft_ids_RK: Tensor,
    d2t: Tensor | None = None,
    verified_RK: Tensor | None = None,
) -> Tensor:
    """p_0 … p_K: probability that each prefix of a draft is accepted; float64 [R, K + 1].

    Args:
        target_probs_RKV: [R, K, V], of each slot's own token.
        verified_RK: slots to look at, leading ones; p is 0 behind them. None looks at all.
    """
    R, K = draft_ids_RK.shape
    if verified_RK is None:
        verified_RK = torch.ones(R, K, dtype=torch.bool, device=draft_ids_RK.device)
    ids_RK = draft_ids_RK.masked_fill(~verified_RK, 0)
    target_RK = target_probs_RKV.gather(2, ids_RK[..., None])[..., 0].double()
    draft_RK = drafted_probability(draft_probs_RKV, ids_RK, d2t, target_probs_RKV.shape[2])
    ratio_RK = (target_RK / draft_RK).nan_to_num(0.0, _HUGE).masked_fill(~verified_RK, 0.0)
    kept = [torch.ones(R, dtype=torch.float64, device=ratio_RK.device)]
    for k in range(K):
        kept.append((kept[-1] * ratio_RK[:, k]).clamp(max=1))
    return torch.stack(kept, 1)


def block_survival(
    target_probs_RKV: Tensor,
    draft_probs_RKV: Tensor,
    draft_ids_RK: Tensor,
    d2t: Tensor | None = None,
) -> Tensor:
    """Probability that prefix k is accepted given x_<k: Σ_x min(p_{k-1} P(x), Q(x)), [R, K].

    Args:
        target_probs_RKV: [R, K, V], of each slot's own token.
    """
    kept_RI = prefix_probability(target_probs_RKV, draft_probs_RKV, draft_ids_RK, d2t)
    return _shared(kept_RI[:, :-1], target_probs_RKV, draft_probs_RKV, d2t)


def block_overlap(
    target_probs_RKV: Tensor,
    draft_probs_RKV: Tensor,
    draft_ids_RK: Tensor,
    d2t: Tensor | None = None,
) -> Tensor:
    """The same given that prefix k - 1 is accepted: Σ_x min(P(x), Q(x) / p_{k-1}), float64 [R, K].

    Where the prefix cannot be accepted it is Σ_x min(P(x), Q(x)), as under token verification.
    """
    kept_RK = prefix_probability(target_probs_RKV, draft_probs_RKV, draft_ids_RK, d2t)[:, :-1]
    kept_RK = torch.where(kept_RK > 0, kept_RK, torch.ones_like(kept_RK))
    return _shared(kept_RK, target_probs_RKV, draft_probs_RKV, d2t) / kept_RK


def _mass_left(kept_S: Tensor, target_SV: Tensor, draft_SV: Tensor, d2t: Tensor | None) -> Tensor:
    """Z of each place: what p P has beyond Q, tokens outside the draft vocabulary included.

    What it does not have beyond Q it shares with Q, and P sums to 1.
    """
    return (kept_S - _shared(kept_S, target_SV, draft_SV, d2t)).clamp(min=0)


def _shared(kept: Tensor, target_V: Tensor, draft_V: Tensor, d2t: Tensor | None) -> Tensor:
    """Σ_x min(p P(x), Q(x)) over the last dimension, float64."""
    same_V = target_V if d2t is None else target_V[..., d2t]
    scaled_V = same_V * kept[..., None].to(same_V.dtype)
    return torch.minimum(scaled_V, draft_V.to(same_V.dtype)).sum(-1).double()
