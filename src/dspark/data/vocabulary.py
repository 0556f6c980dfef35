"""Which tokens completions use, and which of them a reduced draft vocabulary keeps.

Suffix: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dspark.data.responses import Response
from dspark.errors import ConfigError, DataError


def token_frequencies(responses: Iterable[Response], vocab_size: int) -> NDArray[np.int64]:
    """How often each token occurs in the completions (prompts and other context not counted).

    Returns:
        int64 [V].

    Raises:
        DataError: a token id does not fit the vocabulary, so the files belong to another target.
    """
    freq_V = np.zeros(vocab_size, dtype=np.int64)
    for response in responses:
        ids = response.response_ids
        if len(ids) and int(ids.max()) >= vocab_size:
            raise DataError(
                f"response {response.key} has a token outside the vocabulary of {vocab_size}",
                found=int(ids.max()),
                fix="Use responses that were made by this target",
            )
        np.add.at(freq_V, ids[response.completion_mask] if response.context else ids, 1)
    return freq_V


def draft_vocabulary(
    freq: NDArray[np.int64], size: int, always: Sequence[int] = ()
) -> tuple[NDArray[np.int64], float]:
    """Choose the tokens of a reduced draft vocabulary.

    Args:
        freq: occurrences of each target token, [V].
        size: V_d, tokens to keep.
        always: ids that must be in, such as stop tokens; they count towards `size`.

    Returns:
        (ids, coverage): int64 [V_d] in rising order, `always` and the most frequent others with
        the lower id first among equals; and the share of all occurrences that these tokens make.

    Raises:
        ConfigError: `size` does not lie between len(always) and V, or an id in `always` is not in
            the vocabulary.
        DataError: `freq` counts nothing.
    """
    vocab_size = len(freq)
    must = sorted(set(always))
    if must and not 0 <= must[0] <= must[-1] < vocab_size:
        raise ConfigError(
            f"a token that must be in the draft vocabulary is not among the target's {vocab_size}",
            found=must,
        )
    if not max(1, len(must)) <= size <= vocab_size:
        raise ConfigError(
            "draft vocabulary size is out of range",
            found=size,
            fix=f"Use {max(1, len(must))} to {vocab_size}",
        )
    total = int(freq.sum())
    if total == 0:
        raise DataError("cannot choose a draft vocabulary: no token was counted")
    forced_V = np.zeros(vocab_size, dtype=bool)
    forced_V[must] = True
    # The last key sorts first: forced ones, then by falling frequency, then by rising id.
    order_V = np.lexsort((np.arange(vocab_size), -freq, ~forced_V))
    ids = np.sort(order_V[:size]).astype(np.int64)
    return ids, int(freq[ids].sum()) / total
