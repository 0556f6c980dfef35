"""The target's embedding and head as drafters use them.

Suffixes: D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dspark.targets.layers import PackedLinear
from dspark.targets.target import softcap


class SharedWeights:
    """The target's embedding and head as a drafter uses them: frozen, never saved with it.

    Args:
        embedding: [V, D] input embedding.
        head: [V, D] language-model head.
        d2t: target id of each draft-vocabulary entry, or None.
        embed_scale, logit_softcap: the target family's, as in Gemma 3.
    """

    def __init__(
        self,
        embedding: Tensor,
        head: Tensor,
        d2t: Tensor | None = None,
        embed_scale: float = 1.0,
        logit_softcap: float | None = None,
    ) -> None:
        self.embedding, self.scale, self.cap = embedding, embed_scale, logit_softcap
        self.head = head if d2t is None else head[d2t].contiguous()
        self._packed: PackedLinear | None = None

    def embed(self, ids: Tensor) -> Tensor:
        x = nn.functional.embedding(ids, self.embedding)
        return x if self.scale == 1.0 else x * torch.tensor(self.scale, dtype=x.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Base logits over the draft vocabulary, [..., V]."""
        if self._packed is None:
            self._packed = PackedLinear(self.head)
        return softcap(self._packed(hidden.to(self.head.dtype)), self.cap)
