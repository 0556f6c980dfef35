"""What draft-and-verify rounds say about each prefix of each draft, as arrays.

Suffixes: N rounds, K block slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dspark.core import RoundRecord
from dspark.errors import CheckpointError


class Judged(NamedTuple):
    """A round, and c* of each slot along its draft; none at temperature 0."""

    record: RoundRecord
    overlap: Sequence[float] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """Rounds of several answers, side by side.

    Attributes:
        confidence_NK: c_k as the drafter gave it.
        accepted_NK: draft tokens 1 … k were all accepted.
        valid_NK: that is known, see `outcomes`.
        overlap_NK: c*_k, the true probability of slot k given those before it; NaN if not known.
        prompts: answers that the rounds come from.
    """

    confidence_NK: NDArray[np.float64]
    accepted_NK: NDArray[np.bool_]
    valid_NK: NDArray[np.bool_]
    overlap_NK: NDArray[np.float64]
    prompts: int

    def __len__(self) -> int:
        return len(self.confidence_NK)


def outcomes(
    records: Sequence[RoundRecord], block_size: int, max_new_tokens: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What the rounds of one whole answer say about each prefix of each draft.

    A prefix is known to be accepted as far as tokens were, and known not to be from the first
    rejection on. Nothing is known behind an accepted stop token, and nothing is used behind the
    length limit: there only rejections could be seen.

    Returns:
        (accepted_NK, valid_NK).
    """
    slots_K = np.arange(1, block_size + 1)
    accepted = np.zeros((len(records), block_size), dtype=np.bool_)
    valid = np.zeros_like(accepted)
    room = max_new_tokens - 1  # the first token comes with the prompt and belongs to no round
    for n, record in enumerate(records):
        accepted[n] = slots_K <= record.accepted
        valid[n] = (slots_K <= room) & (accepted[n] | record.rejected)
        room -= record.committed
    return accepted, valid


def to_arrays(answers: Iterable[Sequence[Judged]], block_size: int, max_new_tokens: int) -> Rounds:
    """Rounds of whole answers, put together.

    Raises:
        CheckpointError: a confidence is not a number.
    """
    answers = list(answers)
    parts = [outcomes([r.record for r in rounds], block_size, max_new_tokens) for rounds in answers]
    sure = [r.record.confidence for rounds in answers for r in rounds]
    unknown = (float("nan"),) * block_size
    true = [tuple(r.overlap) or unknown for rounds in answers for r in rounds]
    confidence = np.array(sure, dtype=np.float64).reshape(-1, block_size)
    if not np.isfinite(confidence).all():
        raise CheckpointError(
            "The drafter's confidences are not numbers",
            fix="Its weights are damaged: copy or train it again",
        )
    empty = np.zeros((0, block_size), dtype=np.bool_)
    return Rounds(
        confidence,
        np.concatenate([empty, *(accepted for accepted, _ in parts)]),
        np.concatenate([empty, *(valid for _, valid in parts)]),
        np.array(true, dtype=np.float64).reshape(-1, block_size),
        len(answers),
    )
