"""Random numbers that belong to a request, not to a batch (docs/algorithms.md, "Random numbers").

Every number is a pure function of its key (seed, request, sample, round, slot, use): there is no
stream and no state, so neither batch position nor batch mates can change what a request draws.

The function is Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3"): a bijection of a 128-bit counter for each 64-bit key. The seed is that key, and the other
fields fill the counter without overlap, so different keys never share a block of random bits.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]  # 32-bit values in 64-bit cells: products of two of them still fit

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10


class Use(IntEnum):
    """What a number is drawn for, so that no two decisions ever look at the same one.

    RESIDUAL is the last draw of a round and serves the correction as well as the bonus: a round
    makes exactly one of the two, and which one (and at which slot) follows from the DRAFT and
    ACCEPT numbers alone. Given those, the RESIDUAL number is still uniform, so drawing either
    token with it is exact. Plain decoding, a round without drafts, uses it too.
    """

    DRAFT = 0  # a draft token
    ACCEPT = 1  # the test of a draft token
    RESIDUAL = 2  # the token that ends a round: correction or bonus
    TARGET = 3  # a token straight from the target outside a round, such as prefill's


def uniform(
    *,
    seed: ArrayLike,
    request: ArrayLike,
    sample: ArrayLike,
    round: ArrayLike,
    slot: ArrayLike,
    use: ArrayLike,
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits, one for each key.

    The arguments are non-negative integers or integer arrays and broadcast against each other.

    Args:
        seed: seed of the request, below 2**64.
        request: which request, below 2**32.
        sample: which completion of the same prompt, below 2**24.
        round: which draft-and-verify round of the request, below 2**32.
        slot: which block slot of the round, below 2**32.
        use: what the number is for, a `Use`.

    Returns:
        float64 array of the broadcast shape.

    Raises:
        TypeError: a field is not an integer.
        ValueError: a field is out of its range, where keys would start to coincide.
    """
    seeds = _field("seed", seed, 64)
    last_word = (_field("sample", sample, 24) << np.uint64(8)) | _field("use", use, 8)
    counter = (
        _field("slot", slot, 32),
        _field("round", round, 32),
        _field("request", request, 32),
        last_word,
    )
    high, low, _, _ = philox(counter, (seeds & _MASK, seeds >> _HALF))
    bits = ((high << _HALF) | low) >> np.uint64(11)
    return np.asarray(bits * 2.0**-53, dtype=np.float64)


def philox(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Philox-4x32-10: four random 32-bit words for each counter and key.

    Args:
        counter: four uint64 arrays of values below 2**32 that broadcast against each other.
        key: two such arrays.

    Returns:
        Four uint64 arrays of values below 2**32.
    """
    word_0, word_1, word_2, word_3 = counter
    key_0, key_1 = key
    for _ in range(_ROUNDS):
        even, odd = word_0 * _MULTIPLIERS[0], word_2 * _MULTIPLIERS[1]
        word_0, word_1 = (odd >> _HALF) ^ word_1 ^ key_0, odd & _MASK
        word_2, word_3 = (even >> _HALF) ^ word_3 ^ key_1, even & _MASK
        key_0, key_1 = (key_0 + _KEY_STEPS[0]) & _MASK, (key_1 + _KEY_STEPS[1]) & _MASK
    return word_0, word_1, word_2, word_3


def _field(name: str, value: ArrayLike, bits: int) -> Words:
    """`value` as uint64, after checking that it fits into its bits of the key."""
    array = np.asarray(value)
    if array.size == 0:
        return array.astype(np.uint64)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be an integer, not {array.dtype}")
    smallest, largest = int(array.min()), int(array.max())
    if smallest < 0 or largest >= 2**bits:
        raise ValueError(f"{name} must be in 0..2**{bits}-1, found {smallest}..{largest}")
    return array.astype(np.uint64)
