"""The DSpark drafter: parallel backbone, sequential head, confidence head (DSpark §3).

Suffixes: R requests, K block slots, D hidden, r Markov rank, V draft vocabulary, C clues.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dspark.core import DraftBlock, SamplingParams
from dspark.drafters.block.drafter import BlockDrafter
from dspark.drafters.block.drawing import Drawn, Ways
from dspark.drafters.block.heads import ConfidenceHead, make_markov_head
from dspark.drafters.config import DrafterConfig
from dspark.drafters.dspark.config import DSparkConfig, DSparkSection
from dspark.drafters.dspark.growth import grow_confidence, grow_sequential
from dspark.drafters.dspark.informed import (
    LINEAR,
    InformedConfidence,
    clue_count,
    clues,
    load_informed,
)
from dspark.errors import ConfigError


class DSparkDrafter(BlockDrafter):
    """Semi-autoregressive block drafter; heads are on or off by configuration.

    Attributes:
        informed: says how sure drafts above temperature 0 are, in the linear head's place.
        keep_clues: give what it goes by with every draft above temperature 0.
    """

    Config = DSparkConfig
    Recipe = DSparkSection
    head_modules = ("markov_head.", "confidence_head.")
    config: DSparkConfig
    informed: InformedConfidence | None = None
    keep_clues: bool = False

    def __init__(self, config: DSparkConfig) -> None:
        super().__init__(config)
        self.candidates = config.candidates
        self.confidence_head = None
        if config.markov_rank:
            self.markov_head = make_markov_head(
                config.markov_head_type,
                config.vocab_size,
                config.out_vocab,
                config.markov_rank,
                config.hidden_size,
                config.block_size,
            )
        elif config.candidates:
            raise ConfigError(
                "Candidates are for a sequential head to score",
                found=f"drafter.candidates {config.candidates}, drafter.markov_rank 0",
                fix="Set drafter.markov_rank above 0, or drafter.candidates to 0",
            )
        self._confidence_sees_markov = bool(config.markov_rank) and config.confidence_with_markov
        if config.confidence_head:
            extra = config.markov_rank if self._confidence_sees_markov else 0
            self.confidence_head = ConfidenceHead(config.hidden_size + extra)

    @property
    def clue_count(self) -> int:
        """C, the numbers on each slot that an informed confidence head goes by."""
        config = self.config
        return clue_count(config.hidden_size, config.markov_rank, config.block_size)

    def linear_clue(self, clues_NC: Tensor) -> Tensor:
        """The linear head's logit among the clues of each slot."""
        return clues_NC[..., self.config.hidden_size + self.config.markov_rank + LINEAR]

    def fuse(self) -> None:
        """What `pack_linears` does first: of W_2 a head over candidates reads single rows."""
        if self.candidates and self.markov_head is not None:
            self.markov_head.keep_rows()

    def load_companions(self, folder: Path, weights: Path) -> None:
        if self.confidence_head is not None:
            head = load_informed(folder, weights, self.clue_count)
            self.informed = None if head is None else head.to(self.device)

    def begin_heads(
        self, start: DrafterConfig, tensors: dict[str, Tensor], start_ids: Tensor | None
    ) -> list[str]:
        own, ids = self.state_dict(), (self.d2t, start_ids)
        heads = self.config.sequential_head, start.sequential_head
        return grow_sequential(*heads, ids, tensors, own) + grow_confidence(tensors, own)

    def confidence_logits(self, hidden: Tensor, previous: Tensor | None) -> Tensor | None:
        if self.confidence_head is None:
            return None
        return self.confidence_head(hidden, previous if self._confidence_sees_markov else None)

    def rate(self, block: DraftBlock, drawn: Drawn, ways: Ways) -> None:
        """The confidence head's word on each slot (DSpark §3.2.1), or the informed head's."""
        head, hidden_RKD, probs_RKV = self.markov_head, drawn.hidden_RKD, block.draft_probs_RKV
        previous = None if head is None else head.previous(drawn.ids_RK[:, :-1])
        linear_RK = self.confidence_logits(hidden_RKD, previous)
        if linear_RK is None:
            return super().rate(block, drawn, ways)
        block.confidence_RK = sure_RK = torch.sigmoid(linear_RK.float())
        if probs_RKV is None or not (self.keep_clues or self.informed is not None):
            return None
        chosen_RK, size = torch.stack(drawn.choices, 1), self.config.block_size
        block.clues_RKC = clues(hidden_RKD, previous, probs_RKV, chosen_RK, linear_RK, size)
        block.confidence_RK = self._informed(block.clues_RKC, sure_RK, ways.params_R)
        return None

    def _informed(
        self, clues_RKC: Tensor, linear_RK: Tensor, params_R: Sequence[SamplingParams]
    ) -> Tensor:
        """Confidences [R, K]: the informed head's, if there is one, but for greedy requests."""
        if self.informed is None:
            return linear_RK
        informed_RK = torch.sigmoid(self.informed.logits(clues_RKC))
        if all(params.temperature > 0 for params in params_R):
            return informed_RK
        greedy_R1 = torch.tensor([[p.temperature == 0] for p in params_R], device=self.device)
        return torch.where(greedy_R1, linear_RK, informed_RK)
