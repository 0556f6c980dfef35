"""From logits to probabilities to a token (docs/algorithms.md, "Verification").

The same `probabilities` shapes the target's and the drafter's distributions, so that the test of
Leviathan et al. 2023 compares like with like. Suffixes: N rows, V vocabulary, C candidates with
the largest probabilities, B chunks of the vocabulary, W tokens in a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark import native
from dspark.core import SamplingParams
from dspark.errors import EngineError

_FEW = 64  # most rows are cut among so few tokens, which are cheaper to find than a full order
_CHUNK = 256
# A smaller temperature would overflow float32 and already is greedy but for exact ties.
_MIN_TEMPERATURE = 1e-30


def sample(
    logits_NV: Tensor, params: Sequence[SamplingParams], u_N: Tensor | NDArray[np.float64]
) -> Tensor:
    """Draw one token a row.

    Args:
        logits_NV: logits of any floating type.
        params: how to draw, one entry a row.
        u_N: uniform numbers in [0, 1), float64.

    Returns:
        int64 ids of shape [N].

    Raises:
        EngineError: a row has no finite largest logit.
    """
    temperature_N = [row.temperature for row in params]
    top_k_N = [row.top_k for row in params]
    top_p_N = [row.top_p for row in params]
    return draw(probabilities(logits_NV, temperature_N, top_k_N, top_p_N), u_N)


def choose(
    logits_RV: Tensor,
    params_R: Sequence[SamplingParams],
    draws_RK: NDArray[np.float64] | None,
    slot: int,
    bias_RV: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A draft token for each request, and the distributions they were drawn from.

    Args:
        logits_RV: the drafter's logits of one slot.
        draws_RK: uniforms of all slots; unused when every request is greedy.
        slot: the slot, from 0.
        bias_RV: added to the logits, in float32.

    Returns:
        int64 ids [R] and float32 probabilities [R, V], or None when every request is greedy.
    """
    if all(params.temperature == 0 for params in params_R):
        return largest(logits_RV, bias_RV), None
    logits_RV = logits_RV.float()
    if bias_RV is not None:
        logits_RV = logits_RV + bias_RV
    assert draws_RK is not None
    temperature_R = [params.temperature for params in params_R]
    top_k_R, top_p_R = [p.top_k for p in params_R], [p.top_p for p in params_R]
    probs_RV = probabilities(logits_RV, temperature_R, top_k_R, top_p_R)
    return draw(probs_RV, draws_RK[:, slot]), probs_RV


def largest(logits_NV: Tensor, bias_NV: Tensor | None = None) -> Tensor:
    """The first largest logit [N] of each row, for a draft: from logits that are not finite comes
    any token, which is only a bad guess.

    Args:
        bias_NV: added to the logits, in float32.
    """
    if native.serves(logits_NV) and (bias_NV is None or bias_NV.dtype is logits_NV.dtype):
        return native.argmax(logits_NV, bias_NV).clamp_min_(0)
    logits_NV = logits_NV.float()
    return (logits_NV if bias_NV is None else logits_NV + bias_NV).argmax(-1)


def largest_share(logits_NV: Tensor, bias_NV: Tensor | None = None) -> Tensor:
    """The largest probability [N] of each row at temperature 1, float32.

    Args:
        bias_NV: added to the logits, in float32.
    """
    logits_NV = logits_NV.float()
    if bias_NV is not None:
        logits_NV = logits_NV + bias_NV
    return (logits_NV.amax(-1) - logits_NV.logsumexp(-1)).exp()


def slot_peaks(
    params_R: Sequence[SamplingParams],
    logits_RV: Tensor,
    probs_RV: Tensor | None,
    bias_RV: Tensor | None = None,
) -> Tensor:
    """max_x q(x) [R] of one slot; at temperature 0, where q is one token, that of temperature 1.

    Args:
        logits_RV, bias_RV: as `choose` took them.
        probs_RV: as it gave them.
    """
    if probs_RV is None:
        return largest_share(logits_RV, bias_RV)
    greedy_R = torch.tensor([p.temperature == 0 for p in params_R], device=probs_RV.device)
    drawn_R = probs_RV.amax(-1)
    if not bool(greedy_R.any()):
        return drawn_R
    return torch.where(greedy_R, largest_share(logits_RV, bias_RV), drawn_R)


def probabilities(
    logits_NV: Tensor,
    temperature_N: Sequence[float] | Tensor | float,
    top_k_N: Sequence[int] | Tensor | int,
    top_p_N: Sequence[float] | Tensor | float,
) -> Tensor:
    """The distribution that tokens are drawn from.

    Temperature comes first, then top-k, then top-p over what top-k left, renormalised. Top-p
    keeps the shortest prefix in descending probability with at least that mass, so one token or
    more. Tokens with equal probabilities rank by id, lower first. A single number
    is that of all rows.

    Args:
        logits_NV: logits of any floating type; -inf rules a token out.
        temperature_N: 0 puts all mass on the first largest logit; above 0 divides the logits.
        top_k_N: tokens to keep; 0 keeps all.
        top_p_N: mass to keep, in (0, 1]; 1 keeps all.

    Returns:
        float32 probabilities [N, V]; each row sums to one up to rounding.

    Raises:
        EngineError: a row has no finite largest logit (NaN, +inf, or nothing but -inf).
    """
    (N, V), device = logits_NV.shape, logits_NV.device
    logits_NV = logits_NV.float()
    temperatures_N = torch.as_tensor(temperature_N, dtype=torch.float32, device=device).expand(N)
    tops_N = torch.as_tensor(top_k_N, dtype=torch.int64, device=device).expand(N)
    masses_N = torch.as_tensor(top_p_N, dtype=torch.float64, device=device).expand(N)

    greedy_N = temperatures_N == 0
    if bool(greedy_N.all()):
        return _one_hot(logits_NV)
    probs_NV = _softmax(logits_NV, temperatures_N.masked_fill(greedy_N, 1.0))
    if bool(greedy_N.any()):
        probs_NV[greedy_N] = _one_hot(logits_NV[greedy_N])

    tops_N = torch.where(tops_N > 0, tops_N.clamp(max=V), V)
    filtered_N = ~greedy_N & ((tops_N < V) | (masses_N < 1))
    if bool(filtered_N.all()):
        return _truncate_(probs_NV, tops_N, masses_N)  # without copying rows
    if bool(filtered_N.any()):
        probs_NV[filtered_N] = _truncate_(
            probs_NV[filtered_N], tops_N[filtered_N], masses_N[filtered_N]
        )
    return probs_NV


def draw(probs_NV: Tensor, u_N: Tensor | NDArray[np.float64]) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution, in float64.

    The first token whose cumulative mass exceeds u times the row's sum is drawn, so rows need
    not sum to one, and a token of probability 0 never comes out, whatever u.

    Args:
        probs_NV: non-negative weights.
        u_N: uniform numbers in [0, 1), float64.

    Returns:
        int64 ids of shape [N].

    Raises:
        EngineError: a row has no mass, or its mass is not finite.
    """
    N, V = probs_NV.shape
    u_N = torch.as_tensor(u_N, dtype=torch.float64, device=probs_NV.device)
    if V % _CHUNK:
        probs_NV = torch.nn.functional.pad(probs_NV, (0, -V % _CHUNK))
    chunks_NBW = probs_NV.reshape(N, -1, _CHUNK)

    # First the chunk, then the token in it: only one chunk a row needs a cumulative sum.
    ends_NB = chunks_NBW.sum(-1, dtype=torch.float64).cumsum(-1)
    total_N = ends_NB[:, -1]
    if not bool((total_N.isfinite() & (total_N > 0)).all()):
        raise EngineError("a distribution to draw from has no mass or is not finite")
    point_N = u_N * total_N
    chunk_N = _first_above(ends_NB, point_N)
    starts_NB = torch.nn.functional.pad(ends_NB, (1, 0))
    start_N = starts_NB.gather(1, chunk_N[:, None])[:, 0]

    rows_N = torch.arange(N, device=probs_NV.device)
    inside_NW = chunks_NBW[rows_N, chunk_N].cumsum(-1, dtype=torch.float64)
    return chunk_N * _CHUNK + _first_above(inside_NW, point_N - start_N)


def _first_above(ends_NC: Tensor, point_N: Tensor) -> Tensor:
    """First index whose cumulative mass exceeds `point`, at most the last one with mass.

    The bound matters where rounding puts the point at or past the end of the row.
    """
    first_N1 = torch.searchsorted(ends_NC, point_N[:, None], right=True)
    last_N1 = torch.searchsorted(ends_NC, ends_NC[:, -1:].contiguous())
    return torch.minimum(first_N1, last_N1)[:, 0]


def _one_hot(logits_NV: Tensor) -> Tensor:
    """All mass on the first largest logit."""
    best_N, ids_N = logits_NV.max(dim=-1)
    check_rows(best_N.isfinite())
    return torch.zeros_like(logits_NV).scatter_(1, ids_N[:, None], 1.0)


def _softmax(logits_NV: Tensor, temperature_N: Tensor) -> Tensor:
    """Soft-max of every whole row at its own temperature."""
    if bool((temperature_N != 1).any()):
        logits_NV = logits_NV / temperature_N.clamp(min=_MIN_TEMPERATURE)[:, None]
    probs_NV = torch.softmax(logits_NV, dim=-1)
    # NaN, +inf or a row of -inf turn the whole row into NaN, so one entry tells.
    check_rows(~probs_NV[:, 0].isnan())
    return probs_NV


def check_rows(fine_N: Tensor) -> None:
    """Refuse logits of which a row is not fine.

    Raises:
        EngineError: naming the first such row.
    """
    if not bool(fine_N.all()):
        row = int((~fine_N).nonzero()[0])
        raise EngineError("logits have no finite largest value", found=f"row {row}")


def _truncate_(probs_NV: Tensor, top_k_N: Tensor, top_p_N: Tensor) -> Tensor:
    """Keep in place what top-k (V where there is none) and then top-p leave, renormalised.

    The cut is found as a value, not as a list of ids, so ids need no sorting, and ties at the
    cut are settled in plain sight.
    """
    V = probs_NV.shape[1]
    ranked_NC = probs_NV.topk(min(_FEW, V)).values
    count_N, edge_N, mass_N = _cut(ranked_NC, top_k_N, top_p_N, V)
    deep = (count_N == 0).nonzero()[:, 0]
    if deep.numel():
        ranked_NC = _descending(probs_NV[deep])
        count_N[deep], edge_N[deep], mass_N[deep] = _cut(ranked_NC, top_k_N[deep], top_p_N[deep], V)

    kept_NV = probs_NV >= edge_N[:, None]
    surplus_N = kept_NV.sum(-1) - count_N
    tied = surplus_N.nonzero()[:, 0]
    if tied.numel():  # more tokens share the value at the cut than fit: the lowest ids stay
        equal_NV = probs_NV[tied] == edge_N[tied, None]
        room_N = equal_NV.sum(-1) - surplus_N[tied]
        kept_NV[tied] &= ~equal_NV | (equal_NV.cumsum(-1) <= room_N[:, None])
    return probs_NV.mul_(kept_NV).div_(mass_N[:, None].float())


def _cut(
    ranked_NC: Tensor, top_k_N: Tensor, top_p_N: Tensor, V: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where top-k and then top-p end each row.

    Args:
        ranked_NC: the largest probabilities in descending order, C of the row's V.
        top_k_N: tokens top-k keeps, V where there is none.
        top_p_N: mass top-p keeps of those.

    Returns:
        Tokens kept (0 if C values do not reach the cut), the smallest probability among them,
        and their mass (float64).
    """
    C = ranked_NC.shape[1]
    mass_NC = ranked_NC.cumsum(-1, dtype=torch.float64)
    of_top_k_N = mass_NC.gather(1, top_k_N.clamp(max=C)[:, None] - 1)[:, 0]
    wanted_N = top_p_N * of_top_k_N.masked_fill(top_k_N == V, 1.0)
    enough_N = torch.searchsorted(mass_NC, wanted_N[:, None])[:, 0] + 1
    count_N = torch.where(top_p_N < 1, torch.minimum(enough_N, top_k_N), top_k_N)
    reached_N = (top_k_N <= C) | ((top_k_N == V) & (count_N <= C))
    last_N1 = count_N.clamp(max=C)[:, None] - 1
    edge_N, mass_N = ranked_NC.gather(1, last_N1)[:, 0], mass_NC.gather(1, last_N1)[:, 0]
    return count_N * reached_N, edge_N, mass_N


def _descending(probs_NV: Tensor) -> Tensor:
    """Values of each row in descending order; on a CPU by numpy, whose sort is far faster."""
    if probs_NV.device.type != "cpu":
        return probs_NV.sort(-1, descending=True).values
    return torch.from_numpy(np.sort(probs_NV.numpy(), axis=-1)).flip(-1)
