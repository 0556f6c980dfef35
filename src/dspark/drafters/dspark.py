"""The DSpark drafter: parallel backbone, sequential head, confidence head (DSpark §3).

Suffixes: R requests, A anchors, K block slots, T context rows, D hidden, M taps x D, r Markov
rank, V draft vocabulary, C clues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dspark.attention.kv_cache import KVCache, Rows
from dspark.attention.ragged import CachedAttention
from dspark.core import DraftBlock, SamplingParams
from dspark.drafters.along_text import block_logits
from dspark.drafters.anchor_batch import AnchorBatch
from dspark.drafters.backbone import ParallelBackbone
from dspark.drafters.block_attention import block_attention
from dspark.drafters.block_losses import BlockOutputs, BlockTruth, block_loss
from dspark.drafters.drafter import Drafter, DrafterConfig, DraftMasks
from dspark.drafters.heads import ConfidenceHead, MarkovHead, make_markov_head
from dspark.drafters.informed import LINEAR, InformedConfidence, clue_count, clues, load_informed
from dspark.drafters.transitions import Transitions
from dspark.errors import ConfigError
from dspark.maths.candidates import best, spread
from dspark.maths.losses import DraftLoss, LossWeights, StepTotals, Teacher
from dspark.maths.sampling import choose, largest, largest_share, slot_peaks


@dataclass(slots=True)
class _Drawn:
    """A block as it is drawn, slot by slot.

    Attributes:
        ids: anchors [R], then draft tokens [R] as target ids.
        choices: draft tokens as ids of the draft vocabulary.
        probs: what they were drawn from, [R, V]; none where every request is greedy.
        peaks: largest probabilities [R], where they are asked for.
    """

    ids: list[Tensor]
    choices: list[Tensor] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)
    peaks: list[Tensor] = field(default_factory=list)


class BlockCache(KVCache):
    """Context rows of the requests, and transition biases kept where keeping them pays."""

    transitions: Transitions | None = None


class DSparkDrafter(Drafter):
    """Semi-autoregressive block drafter; heads are on or off by configuration.

    Attributes:
        informed: says how sure drafts above temperature 0 are, in the linear head's place.
        keep_clues: give what it goes by with every draft above temperature 0.
    """

    kind: ClassVar[str] = "dspark"
    reads_next_ids: ClassVar[bool] = False
    gives_peaks: ClassVar[bool] = True
    informed: InformedConfidence | None = None
    keep_clues: bool = False

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        assert config.mask_token_id is not None
        self.mask_id = config.mask_token_id
        self.backbone = ParallelBackbone(config)
        self.markov_head = self.confidence_head = None
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
        if self.config.candidates and self.markov_head is not None:
            self.markov_head.keep_rows()

    def load_companions(self, folder: Path, weights: Path) -> None:
        if self.confidence_head is not None:
            head = load_informed(folder, weights, self.clue_count)
            self.informed = None if head is None else head.to(self.device)

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
        ids_AK = torch.full_like(labels_AK, self.mask_id)
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
        return BlockOutputs(hidden_AKD, features, self._confidence(hidden_AKD, previous))

    def _confidence(self, hidden: Tensor, previous: Tensor | None) -> Tensor | None:
        if self.confidence_head is None:
            return None
        return self.confidence_head(hidden, previous if self._confidence_sees_markov else None)

    def loss(
        self, batch: AnchorBatch, weights: LossWeights, totals: StepTotals | None = None
    ) -> DraftLoss:
        """Loss of one batch (DSpark §3.3); see :mod:`dspark.drafters.block_losses`."""
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
        weights, count = self.loss_weights(weights), self.config.candidates
        return block_loss(out, truth, self.markov_head, count, self.to_target_ids, weights, totals)

    def logits_along(self, batch: AnchorBatch, rows: int) -> Iterator[Tensor]:
        """Logits [≤ rows, K, V] of the batch's blocks along the true text, in order, float32."""
        out = self.block_outputs(
            batch.taps_TM, batch.lengths, batch.anchors, batch.anchor_ids_A, batch.labels_AK
        )
        return block_logits(out, self.shared, self.markov_head, self.config.candidates, rows)

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
        first_order = type(head) is MarkovHead and not config.candidates  # others see h_k as well
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
        config = self.config
        device = self.device
        # No slot beyond those asked for. Seeing all seven, the first gives 1.6 % more accepted
        # length, the first three 1.0 %; to verify one token they cost 2 % more of a round of one
        # user and 37 % of 64 (results/cost.json).
        size = steps or config.block_size
        mask = [self.mask_id] * (size - 1)
        spans = zip(slots_R, anchor_pos_R, anchors_R, strict=True)
        rows = Rows.build([(s, pos, [a, *mask]) for s, pos, a in spans], device)
        embedded = self.shared.embed(rows.ids_T).to(self.backbone.norm.weight.dtype)
        windows = (None,) * config.num_layers
        attend = CachedAttention(cache, rows, windows, config.head_dim**-0.5, block=size)
        hidden = self.backbone(embedded, rows.positions_T, attend)
        hidden_RKD = hidden.view(len(anchors_R), size, -1)
        anchors = torch.tensor(anchors_R, device=device)
        ways = params_R, draws_RK, masks, cache.transitions
        return self._sample_block(hidden_RKD, anchors, *ways, peaks and not config.confidence_head)

    def _sample_block(
        self,
        hidden_RKD: Tensor,
        anchors_R: Tensor,
        params_R: Sequence[SamplingParams],
        draws_RK: np.ndarray,
        masks: DraftMasks | None,
        transitions: Transitions | None,
        peaks: bool,
    ) -> DraftBlock:
        """Left to right through the block: each token's logits carry the bias of the one before."""
        base_RKV, head = self.shared.logits(hidden_RKD), self.markov_head
        greedy = masks is None and all(params.temperature == 0 for params in params_R)
        ids_RK = None
        if greedy and not (peaks and head is not None):  # a head's biases do not come out of there
            ids_RK = self._at_once(base_RKV, anchors_R, transitions)
        drawn = _Drawn([anchors_R])
        if ids_RK is None:
            drawn = self._slot_by_slot(
                hidden_RKD, base_RKV, anchors_R, params_R, draws_RK, masks, transitions, peaks
            )
            ids_RK = torch.stack(drawn.ids, 1)
        probs_RKV = torch.stack(drawn.probs, 1) if drawn.probs else None
        previous = None if head is None else head.previous(ids_RK[:, :-1])
        lengths = None if masks is None else masks.lengths
        block = DraftBlock(ids_RK[:, 1:], probs_RKV, lengths=lengths)
        linear_RK = self._confidence(hidden_RKD, previous)
        if linear_RK is None and peaks:
            slots = torch.stack(drawn.peaks, 1) if drawn.peaks else largest_share(base_RKV)
            block.confidence_RK, block.peaks = slots, True
        if linear_RK is None:
            return block
        block.confidence_RK = sure_RK = torch.sigmoid(linear_RK.float())
        asked = self.keep_clues or self.informed is not None
        if asked and probs_RKV is not None:
            chosen_RK = torch.stack(drawn.choices, 1)
            size = self.config.block_size
            block.clues_RKC = clues(hidden_RKD, previous, probs_RKV, chosen_RK, linear_RK, size)
            block.confidence_RK = self._informed(block.clues_RKC, sure_RK, params_R)
        return block

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

    def _at_once(
        self, base_RKV: Tensor, anchors_R: Tensor, transitions: Transitions | None
    ) -> Tensor | None:
        """Anchors and greedy draft tokens [R, K + 1] without a loop over slots, where that goes."""
        if self.markov_head is None:  # no slot knows of the others
            best_RK = largest(base_RKV.flatten(0, 1)).view(base_RKV.shape[:2])
            return torch.cat([anchors_R[:, None], self.to_target_ids(best_RK)], 1)
        if transitions is not None and transitions.can_follow(base_RKV):
            return transitions.follow(base_RKV, anchors_R)
        return None

    def _slot_by_slot(
        self,
        hidden_RKD: Tensor,
        base_RKV: Tensor,
        anchors_R: Tensor,
        params_R: Sequence[SamplingParams],
        draws_RK: np.ndarray,
        masks: DraftMasks | None,
        transitions: Transitions | None,
        peaks: bool,
    ) -> _Drawn:
        """Anchors and draft tokens, the latter with what they were drawn from."""
        head, state = self.markov_head, None
        if head is not None:
            state = head.start(len(hidden_RKD), hidden_RKD[:, 0, : head.rank])
        drawn = _Drawn([anchors_R])
        for k in range(hidden_RKD.shape[1]):
            logits, bias, count = base_RKV[:, k], None, self.config.candidates
            if head is not None and transitions is not None:
                bias = transitions.after(drawn.ids[-1])
            elif head is not None:
                features, state = head.step(head.previous(drawn.ids[-1]), hidden_RKD[:, k], state)
                bias = None if count else head.bias(features)
            if masks is not None:
                logits = logits.float() if bias is None else logits.float() + bias
                logits, bias = masks.apply(logits, drawn.ids[1:]), None
            if head is not None and count:  # the best of what may stand
                values_RC, ids_RC = best(logits.float(), count)
                scores_RC = values_RC + head.bias_of(features, ids_RC).float()
                logits = spread(scores_RC, ids_RC, logits.shape[-1])
            chosen, probs_RV = choose(logits, params_R, draws_RK, k, bias)
            if probs_RV is not None:
                drawn.probs.append(probs_RV)
            if peaks:
                drawn.peaks.append(slot_peaks(params_R, logits, probs_RV, bias))
            drawn.choices.append(chosen)
            drawn.ids.append(self.to_target_ids(chosen))
        return drawn
