"""Which draft tokens a batch verifies, given survival and cost (DSpark §3.2.2, §5.2).

Every rule admits candidates (request, slot) in descending survival, so a slot never goes without
the slots before it, and returns one verify length a request. No torch, and no array library: the
rules run between two forwards that leave no cache warm, where plain numbers are the fastest for
few requests, and fast enough for many.

Suffixes: R requests, K block slots, N candidates in order of admission, B batch tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

Floats = Sequence[float]
DraftTimes = Sequence[tuple[int, float]]  # slots for each request, seconds for the batch


def ranked(survival_RK: Sequence[Floats]) -> tuple[list[float], list[int]]:
    """Candidates in the order of admission: descending survival, ties by slot, then by request.

    The order never depends on anything but survival and places, so no token can pull itself ahead.

    Args:
        survival_RK: a_{r,k}, not rising along k.

    Returns:
        survival [N] and request [N] of each candidate.
    """
    order = sorted((-a, k, r) for r, a_K in enumerate(survival_RK) for k, a in enumerate(a_K))
    return [-a for a, _, _ in order], [r for _, _, r in order]


def throughput(survival_N: Iterable[float], committed: float, seconds_B: Floats) -> list[float]:
    """Θ after 0, 1, … N admissions: expected tokens of the round over its seconds (§3.2.2).

    Args:
        survival_N: candidates in order of admission.
        committed: tokens expected without any admission, one a request.
        seconds_B: time of the whole round with 0, 1, … N candidates in the batch; where it ends
            nobody is admitted any more.
    """
    admitted = accumulate(survival_N, initial=0.0)
    return [(committed + a) / s for a, s in zip(admitted, seconds_B, strict=False)]


def causal(
    survival_RK: Sequence[Floats], seconds_B: Floats, committed: float | None = None
) -> list[int]:
    """Algorithm 1: admit while Θ strictly rises, and stop at the first candidate that does not.

    Stopping there is what keeps it lossless: whether a token is admitted depends on candidates that
    outrank it, and its own later slots never do (Appendix A shows what looking on would break).

    Args:
        seconds_B: as in `throughput`; on a measured staircase its lower convex envelope, on
            which Θ has one peak.
        committed: as in `throughput`; by default R.

    Returns:
        Verify lengths [R].
    """
    lengths_R, admitted = [0] * len(survival_RK), 0.0
    committed = _committed(survival_RK, committed)
    theta = committed / seconds_B[0]
    for a, request, seconds in zip(*ranked(survival_RK), seconds_B[1:], strict=False):
        admitted += a
        better = (committed + admitted) / seconds
        if better <= theta:
            break
        theta = better
        lengths_R[request] += 1
    return lengths_R


def pipelined(survival_RK: Sequence[Floats], capacity: int) -> list[int]:
    """The candidates with the highest survival, as many as was settled before the drafts (§5.2).

    Returns:
        Verify lengths [R].
    """
    lengths_R = [0] * len(survival_RK)
    for request in ranked(survival_RK)[1][:capacity]:
        lengths_R[request] += 1
    return lengths_R


def capacity(
    survival_RK: Sequence[Floats], seconds_B: Floats, committed: float | None = None
) -> int:
    """Draft tokens that maximise Θ over the whole staircase, however it dips on the way (§5.2).

    Lossless only with survival that knows nothing of the drafts it is applied to: the pipelined
    policy takes confidences two steps old.
    """
    survival_N, _ = ranked(survival_RK)
    theta = throughput(survival_N, _committed(survival_RK, committed), seconds_B)
    return theta.index(max(theta))


@dataclass(frozen=True, slots=True)
class Block:
    """A way to draft for a batch.

    Attributes:
        slots: drafted for each request.
        count: draft tokens to verify in the whole batch.
        theta: expected tokens a second.
    """

    slots: int
    count: int
    theta: float


def best_block(
    survival_RK: Sequence[Floats],
    draft_s: DraftTimes,
    verify_s_B: Floats,
    committed: float | None = None,
) -> Block:
    """Slots and draft tokens that together maximise Θ; the fewest slots among equals.

    Like `capacity`, only for survival that knows nothing of the drafts it is applied to.

    Args:
        draft_s: slots that may be drafted for each request and the seconds it takes.
        verify_s_B: seconds of the target's forward with 0, 1, … draft tokens in the batch.
        committed: as in `throughput`; by default R.
    """
    blocks = []
    for slots, draft_seconds in draft_s:
        tokens = chain.from_iterable(a_K[:slots] for a_K in survival_RK)
        survival_N = sorted(tokens, reverse=True)
        seconds_B = [draft_seconds + s for s in verify_s_B[: len(survival_N) + 1]]
        theta = throughput(survival_N, _committed(survival_RK, committed), seconds_B)
        most = max(theta)
        blocks.append(Block(slots, theta.index(most), most))
    return max(blocks, key=lambda block: block.theta)


def worth_drafting(
    survival_RK: Sequence[Floats],
    draft_s_R: Sequence[DraftTimes],
    verify_s_B: Floats,
    margin: float = 0.0,
) -> list[bool]:
    """Which requests to draft at all, from the survival that their past rounds let expect.

    The most promising requests come first; as many are drafted as maximise Θ, each number with
    the slots and draft tokens that suit it best. Numbers are tried in steps that double, and all
    requests.

    Args:
        survival_RK: expected of each request.
        draft_s_R: times of drafting for 0, 1, … R requests; those of 0 are not looked at.
        verify_s_B: seconds of the target's forward with 0, 1, … draft tokens in the batch.
        margin: share by which drafts must raise Θ over a step without any; below 0 where rounds
            with drafts are known to take less than these times say.
    """
    count = len(survival_RK)
    order = sorted(range(count), key=lambda r: -sum(survival_RK[r]))
    plain = count / verify_s_B[0]
    best, most = 0, plain * (1 + margin)
    # What drafts can bring at most, beyond what their rows cost at least. Where that does not make
    # up for drafting, no block of so many does, and there is nothing to search.
    row_s = min(((s - verify_s_B[0]) / n for n, s in enumerate(verify_s_B) if n), default=0.0)
    gains = accumulate(sum(max(a - plain * row_s, 0.0) for a in survival_RK[r]) for r in order)
    gain_R = [0.0, *gains]
    for number in {min(2**i, count) for i in range(count.bit_length() + 1)} - {0}:
        least_s = min(seconds for _, seconds in draft_s_R[number])
        if margin >= 0 and gain_R[number] <= plain * least_s:
            continue
        chosen = [survival_RK[r] for r in order[:number]]
        theta = best_block(chosen, draft_s_R[number], verify_s_B, count).theta
        if theta > most:
            best, most = number, theta
    wanted = set(order[:best])
    return [r in wanted for r in range(count)]


def _committed(survival_RK: Sequence[Floats], committed: float | None) -> float:
    return len(survival_RK) if committed is None else committed
