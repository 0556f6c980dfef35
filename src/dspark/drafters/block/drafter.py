"""Block drafters: one pass of the backbone drafts a whole block (DSpark §2 and §3.1).

DFlash is one without heads; DSpark adds a sequential and a confidence head.

Suffixes: R requests, A anchors, K block slots, T context rows, D hidden, M taps x D, r Markov
rank, V draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dspark.attention.kv_cache import KVCache, Rows
from dspark.attention.ragged import CachedAttention
from dspark.core import DraftBlock, SamplingParams
from dspark.drafters.block.along_text import block_logits
from dspark.drafters.block.attention import block_attention
from dspark.drafters.block.backbone import ParallelBackbone
from dspark.drafters.block.batch import AnchorBatch
from dspark.drafters.block.config import BlockConfig
from dspark.drafters.block.drawing import Drawn, Speaker, Ways, draw_block
from dspark.drafters.block.heads import MarkovHead
from dspark.drafters.block.losses import BlockOutputs, BlockTruth, block_loss
from dspark.drafters.block.transitions import Transitions
from dspark.drafters.drafter import Drafter, DraftMasks
from dspark.maths.losses import DraftLoss, LossWeights, StepTotals, Teacher


class BlockCache(KVCache):
    """Context rows of the requests, and transition biases kept where keeping them pays."""

    transitions: Transitions | None = None


class BlockDrafter(Drafter):
    """Parallel backbone; heads are a kind's own, and none here.

    Attributes:
        markov_head: the sequential head.
        candidates: C, that it scores alone; 0 for all tokens.
    """

    Batch = AnchorBatch
    reads_next_ids: ClassVar[bool] = False
    gives_peaks: ClassVar[bool] = True
    config: BlockConfig
    markov_head: MarkovHead | None
    candidates: int = 0

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.backbone = ParallelBackbone(config)
        self.markov_head = None

    def confidence_logits(self, hidden: Tensor, previous: Tensor | None) -> Tensor | None:
        """Logits of c_k from h_k and W_1[x_{k-1}]; None without a confidence head."""
        return None

    def rate(self, block: DraftBlock, drawn: Drawn, ways: Ways) -> None:
        """Say how sure the slots of a block are, as far as that is known or asked for."""
        if ways.peaks:
            block.confidence_RK, block.peaks = drawn.peaks_RK, True

    # ---- training -------------------------------------------------------------------------

    def block_outputs(
        self,
        taps_TM: Tensor,
        lengths: list[int],
        anchors: list[Tensor],
        anchor_ids_A: Tensor,
        labels_AK: Tensor,
    ) -> BlockOutputs:
        """Hidden states, sequential features and confidence logits of packed blocks."""
        size = self.config.block_size
        positions_T = torch.cat([torch.arange(n) for n in lengths]).to(taps_TM.device)
        context = self.backbone.context_heads(self.backbone.context(taps_TM), positions_T)
        anchors_A = torch.cat(anchors).to(taps_TM.device)
        ids_AK = torch.full_like(labels_AK, self.config.mask_token_id)
        ids_AK[:, 0] = anchor_ids_A
        steps = torch.arange(size, device=taps_TM.device)
        attend = block_attention(context, lengths, anchors, size)
        embedded = self.shared.embed(ids_AK.flatten()).to(taps_TM.dtype)
        hidden = self.backbone(embedded, (anchors_A[:, None] + steps).flatten(), attend)
        hidden_AKD = hidden.view(len(anchors_A), size, -1)
        previous = features = None
        if self.markov_head is not None:
            previous_ids = torch.cat([anchor_ids_A[:, None], labels_AK[:, :-1]], 1)
            previous = self.markov_head.previous(previous_ids).to(hidden.dtype)
            features = self.markov_head.features(previous, hidden_AKD)
        return BlockOutputs(hidden_AKD, features, self.confidence_logits(hidden_AKD, previous))

    def loss(
        self, batch: AnchorBatch, weights: LossWeights, totals: StepTotals | None = None
    ) -> DraftLoss:
        """Loss of one batch (DSpark §3.3); see :mod:`dspark.drafters.block.losses`."""
        out = self.block_outputs(
            batch.taps_TM, batch.lengths, batch.anchors, batch.anchor_ids_A, batch.labels_AK
        )
        truth = BlockTruth(
            Teacher(batch.last_ND, batch.log_norm_N, self.shared.head, self.shared.cap),
            batch.anchor_ids_A,
            self.to_draft_ids(batch.labels_AK),
            batch.label_valid_AK,
            batch.draws_AK,
        )
        weights, count = self.loss_weights(weights), self.candidates
        return block_loss(out, truth, self.markov_head, count, self.to_target_ids, weights, totals)

    def logits_along(self, batch: AnchorBatch, rows: int) -> Iterator[Tensor]:
        """Logits [≤ rows, K, V] of the batch's blocks along the true text, in order, float32."""
        out = self.block_outputs(
            batch.taps_TM, batch.lengths, batch.anchors, batch.anchor_ids_A, batch.labels_AK
        )
        return block_logits(out, self.shared, self.markov_head, self.candidates, rows)

    # ---- inference ------------------------------------------------------------------------

    def new_cache(self, slots: int, max_len: int) -> BlockCache:
        config = self.config
        weight = self.backbone.fc.weight
        cache = BlockCache(
            config.num_layers,
            slots,
            max_len + config.block_size,
            config.num_kv_heads,
            config.head_dim,
            self.backbone.norm.weight.dtype,
            weight.device,
        )
        head = self.markov_head
        first_order = type(head) is MarkovHead and not self.candidates  # others see h_k as well
        if first_order and head is not None and weight.device.type == "cpu":
            cache.transitions = Transitions(head, self.d2t)
        return cache

    @torch.inference_mode()
    def extend(
        self,
        cache: KVCache,
        taps_TM: Tensor,
        slots_T: Tensor,
        positions_T: Tensor,
        next_ids_T: Tensor | None,
    ) -> None:
        if not len(slots_T):
            return
        taps_TM = taps_TM.to(self.backbone.norm.weight.dtype)
        self.backbone.extend(cache, taps_TM, slots_T, positions_T)

    @torch.inference_mode()
    def draft(
        self,
        cache: BlockCache,
        anchors_R: Sequence[int],
        anchor_pos_R: Sequence[int],
        slots_R: Sequence[int],
        params_R: Sequence[SamplingParams],
        draws_RK: np.ndarray,
        steps: int | None = None,
        masks: DraftMasks | None = None,
        peaks: bool = False,
    ) -> DraftBlock:
        config, device = self.config, self.device
        # No slot beyond those asked for. Seeing all seven, the first gives 1.6 % more accepted
        # length, the first three 1.0 %; to verify one token they cost 2 % more of a round of one
        # user and 37 % of 64 (results/cost.json).
        size = steps or config.block_size
        mask = [config.mask_token_id] * (size - 1)
        spans = zip(slots_R, anchor_pos_R, anchors_R, strict=True)
        rows = Rows.build([(s, pos, [a, *mask]) for s, pos, a in spans], device)
        embedded = self.shared.embed(rows.ids_T).to(self.backbone.norm.weight.dtype)
        windows = (None,) * config.num_layers
        attend = CachedAttention(cache, rows, windows, config.head_dim**-0.5, block=size)
        hidden = self.backbone(embedded, rows.positions_T, attend)
        hidden_RKD = hidden.view(len(anchors_R), size, -1)
        anchors = torch.tensor(anchors_R, device=device)
        ways = Ways(params_R, draws_RK, masks, peaks and not config.gives_confidence)
        speaker = Speaker(self.markov_head, self.candidates, cache.transitions, self.to_target_ids)
        drawn = draw_block(hidden_RKD, self.shared.logits(hidden_RKD), anchors, ways, speaker)
        lengths = None if masks is None else masks.lengths
        block = DraftBlock(drawn.ids_RK[:, 1:], drawn.probs_RKV, lengths=lengths)
        self.rate(block, drawn, ways)
        return block
