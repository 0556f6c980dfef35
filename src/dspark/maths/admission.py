"""Which draft tokens a batch verifies, given survival and cost (DSpark §3.2.2, §5.2).

Every rule admits candidates (request, slot) in descending survival, so a slot never goes without
the slots before it, and returns one verify length a request. No torch.

Suffixes: R requests, K block slots, N candidates in order of admission, B batch tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def ranked(survival_RK: ArrayLike) -> tuple[Floats, Ints]:
    """Candidates in the order of admission: descending survival, ties by slot, then by request.

    The order never hangs on anything but survival and places, so no token can pull itself ahead.

    Args:
        survival_RK: a_{r,k}, not rising along k.

    Returns:
        survival [N] and request [N] of each candidate.
    """
    survival_RK = np.asarray(survival_RK, dtype=np.float64)
    requests, slots = survival_RK.shape
    request_RK, slot_RK = np.indices((requests, slots))
    flat = survival_RK.ravel()
    order = np.lexsort((request_RK.ravel(), slot_RK.ravel(), -flat))
    return flat[order], request_RK.ravel()[order]


def throughput(survival_N: ArrayLike, committed: float, seconds_B: ArrayLike) -> Floats:
    """Θ after 0, 1, … N admissions: expected tokens of the round over its seconds (§3.2.2).

    Args:
        survival_N: candidates in order of admission.
        committed: tokens expected without any admission, one a request.
        seconds_B: time of the whole round with 0, 1, … N candidates in the batch.
    """
    tokens = committed + np.concatenate([[0.0], np.cumsum(np.asarray(survival_N, np.float64))])
    return tokens / np.asarray(seconds_B, dtype=np.float64)[: len(tokens)]


def causal(survival_RK: ArrayLike, seconds_B: ArrayLike, committed: float | None = None) -> Ints:
    """Algorithm 1: admit while Θ strictly rises, and stop at the first candidate that does not.

    Stopping there is what keeps it lossless: whether a token is admitted hangs on candidates that
    outrank it, and its own later slots never do (Appendix A shows what looking on would break).

    Args:
        seconds_B: as in `throughput`; on a measured staircase its lower convex envelope, on
            which Θ has one peak.
        committed: as in `throughput`; by default R.
    """
    survival_N, request_N = ranked(survival_RK)
    theta = throughput(survival_N, _committed(survival_RK, committed), seconds_B)
    falls = np.flatnonzero(np.diff(theta) <= 0)
    count = int(falls[0]) if falls.size else len(survival_N)
    return _lengths(request_N[:count], survival_RK)


def capacity(survival_RK: ArrayLike, seconds_B: ArrayLike, committed: float | None = None) -> int:
    """Draft tokens that maximise Θ over the whole staircase, however it dips on the way (§5.2).

    Lossless only with survival that knows nothing of the drafts it is applied to: the pipelined
    policy takes confidences two steps old.
    """
    survival_N, _ = ranked(survival_RK)
    theta = throughput(survival_N, _committed(survival_RK, committed), seconds_B)
    return int(np.argmax(theta))


def top(survival_RK: ArrayLike, count: int) -> Ints:
    """The `count` candidates with the highest survival."""
    return _lengths(ranked(survival_RK)[1][:count], survival_RK)


def worth_drafting(
    survival_RK: ArrayLike, draft_s_R: ArrayLike, verify_s_B: ArrayLike
) -> NDArray[np.bool_]:
    """Which requests to draft at all, from the survival that their past rounds let expect.

    The most promising requests come first; as many are drafted as maximise Θ, each number with
    the draft tokens that suit it best. Numbers are tried in steps that double, and all requests.

    Args:
        survival_RK: expected of each request.
        draft_s_R: seconds of drafting for 0, 1, … R requests.
        verify_s_B: seconds of the target's forward with 0, 1, … draft tokens in the batch.
    """
    survival_RK = np.asarray(survival_RK, float)
    draft_s_R, verify_s_B = np.asarray(draft_s_R, float), np.asarray(verify_s_B, float)
    order = np.argsort(-survival_RK.sum(1), kind="stable")
    count = len(order)
    best, most = 0, count / (draft_s_R[0] + verify_s_B[0])
    for number in {min(2**i, count) for i in range(count.bit_length() + 1)}:
        survival_N = -np.sort(-survival_RK[order[:number]].ravel())
        theta = throughput(survival_N, count, draft_s_R[number] + verify_s_B).max()
        if theta > most:
            best, most = number, theta
    wanted = np.zeros(count, dtype=bool)
    wanted[order[:best]] = True
    return wanted


def _committed(survival_RK: ArrayLike, committed: float | None) -> float:
    return len(np.asarray(survival_RK)) if committed is None else committed


def _lengths(request_N: Ints, survival_RK: ArrayLike) -> Ints:
    return np.bincount(request_N, minlength=len(np.asarray(survival_RK))).astype(np.int64)
