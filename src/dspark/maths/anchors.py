"""Where the training blocks of a sequence start and which of their labels count (DSpark §3.3).

Suffixes: T tokens of the sequence, A anchors, K block slots.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from dspark.errors import ConfigError


def draw_anchors(
    loss_mask: NDArray[np.bool_],
    count: int,
    block_size: int,
    *,
    seed: int,
    epoch: int,
    sample_id: str,
) -> NDArray[np.int64]:
    """Choose anchors of one sequence at random, without replacement.

    A position can be an anchor when it and its successor, the first label, lie in the loss mask.
    The choice depends on nothing but the arguments, so it does not change with the number of
    workers or the order of the data, nor with the version of numpy.

    Args:
        loss_mask: [T] tokens that are trained on (completions only).
        count: anchors wanted; all candidates are returned if there are fewer.
        block_size: slots of a block (the paper's γ). It does not restrict the choice: a block
            may reach past the mask, and `label_valid` then cuts it short.
        seed: seed of the training run.
        epoch: number of the pass over the data.
        sample_id: name of the sequence, unique in the data set.

    Returns:
        int64 positions, ascending.

    Raises:
        ConfigError: count is negative or block_size below 1.
    """
    if count < 0:
        raise ConfigError("the number of anchors is negative", found=count)
    _check_block_size(block_size)
    mask_T = np.asarray(loss_mask, dtype=bool)
    candidates = np.flatnonzero(mask_T[:-1] & mask_T[1:]).astype(np.int64)
    # One raw word a candidate; the smallest win.
    words = _words(f"{seed}/{epoch}/{sample_id}", candidates.size)
    chosen = np.argsort(words, kind="stable")[:count]
    return np.sort(candidates[chosen])


def slot_uniforms(
    anchors: int, block_size: int, seed: int, epoch: int, sample_id: str
) -> NDArray[np.float64]:
    """Uniforms in [0, 1) for the slots of a sequence's blocks, [A, K]; keyed as anchors are."""
    words = _words(f"{seed}/{epoch}/{sample_id}/slots", anchors * block_size)
    uniforms = np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)
    return uniforms.reshape(anchors, block_size)


def _words(key: str, count: int) -> NDArray[np.uint64]:
    """Random words of a key. Raw words are what numpy promises to keep."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    generator = np.random.Philox(key=int.from_bytes(digest, "little"))
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def label_valid(
    loss_mask: NDArray[np.bool_], anchors: NDArray[np.int64], block_size: int
) -> NDArray[np.bool_]:
    """Which labels of each block count: those before the first one out of sequence or mask.

    Args:
        loss_mask: [T] tokens that are trained on.
        anchors: [A] anchor positions; slot k (from 1) of a block has its label at anchor + k.
        block_size: slots of a block, K.

    Returns:
        bool [A, K].

    Raises:
        ConfigError: block_size is below 1.
    """
    _check_block_size(block_size)
    # Masked-out positions behind the end represent everything outside the sequence.
    padded = np.concatenate([np.asarray(loss_mask, dtype=bool), np.zeros(block_size, dtype=bool)])
    position_AK = np.asarray(anchors, dtype=np.int64)[:, None] + np.arange(1, block_size + 1)
    return np.logical_and.accumulate(padded[position_AK], axis=1)


def _check_block_size(block_size: int) -> None:
    if block_size < 1:
        raise ConfigError("block_size is below 1", found=block_size)
