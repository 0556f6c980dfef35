"""Does an adaptive policy lose to the best fixed choice at one level of load (DSpark §5)?

The fixed choice is picked on one half of the slices and compared on the other. Picked and compared
on the same slices it would look better than it is: the largest of several noisy speeds owes part
of its lead to luck in those very slices (the winner's curse), and an adaptive policy that is
exactly as good would seem worse.

Suffixes: L policies, the adaptive one first; T turns; B resamples; 2 is tokens and seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dspark.maths.bootstrap import Floats, interval, ratio, resample_counts

# Shares of the best fixed choice's throughput that the adaptive policies have to reach.
LIMITS = {"auto": 0.98, "causal": 0.95, "pipelined": 0.98}
FEWEST_TURNS = 4  # two to choose on and two to compare on

Turns = Sequence[tuple[float, float]]  # tokens and seconds of a policy's turns, in their order


@dataclass(frozen=True, slots=True)
class NeverWorse:
    """An adaptive policy's throughput over that of the best fixed choice.

    Attributes:
        ratio: mean of the two halves' ratios.
        low, high: its 95 % bootstrap interval over turns.
        chosen: the fixed choices that were best on the even and on the odd turns.
    """

    ratio: float
    low: float
    high: float
    chosen: tuple[str, str]

    def falls_short(self, policy: str) -> bool:
        """Even the upper end is below the policy's limit."""
        return self.high < LIMITS[policy]


def against_fixed(turns: Mapping[str, Turns]) -> dict[str, NeverWorse]:
    """Every adaptive policy of one level of load against the fixed ones.

    Args:
        turns: tokens and seconds by policy, warming up left out; "off" and "fixed:K" are the fixed
            choices.

    Returns:
        By adaptive policy; empty without a fixed choice or with too few turns.
    """
    fixed = {name: series for name, series in turns.items() if _is_fixed(name)}
    count = min(map(len, turns.values()), default=0)
    if not fixed or count < FEWEST_TURNS:
        return {}
    found = {}
    for name in LIMITS:
        if name in turns:
            # Turns are paired: what slowed the machine in one of them slowed all policies.
            cut = [series[:count] for series in (turns[name], *fixed.values())]
            found[name] = _compare(np.array(cut, np.float64), list(fixed))
    return found


def _compare(turns_LT2: Floats, fixed: Sequence[str]) -> NeverWorse:
    """Choose on each half in turn, compare on the other.

    The interval keeps the choices: it says how sure the comparison with them is.
    """
    even, odd = turns_LT2[:, 0::2], turns_LT2[:, 1::2]
    chosen, values, resampled = [], [], []
    for key, (choosing, compared) in enumerate(((even, odd), (odd, even))):
        best = int(np.argmax(_speed(choosing[1:].sum(1))))
        pair = compared[[0, 1 + best]]
        counts_BT = resample_counts(pair.shape[1], key)
        adaptive_B, fixed_B = (_speed(counts_BT @ turns_T2) for turns_T2 in pair)
        adaptive, other = _speed(pair.sum(1))
        chosen.append(fixed[best])
        values.append(float(ratio(adaptive, other)))
        resampled.append(ratio(adaptive_B, fixed_B))
    low, high = interval(np.mean(resampled, axis=0)) or (np.nan, np.nan)
    return NeverWorse(float(np.mean(values)), low, high, (chosen[0], chosen[1]))


def _speed(totals: Floats) -> Floats:
    """Tokens a second from (tokens, seconds) along the last axis."""
    return np.asarray(ratio(totals[..., 0], totals[..., 1]))


def _is_fixed(policy: str) -> bool:
    return policy == "off" or policy.startswith("fixed:")
