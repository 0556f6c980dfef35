"""Chain drafters: one decoder layer that says a token at a time, each from its own last output.

Eagle3 and MTP differ in what a position's input is made of and in what it hands to the next; the
layer, its cache and the training-time test stand here. Position i pairs the target's feature of i
with the token at i + 1 and speaks of the token at i + 2.

Suffixes: R requests, T packed rows, Q positions that learn, K chain steps, D hidden, M width of
the target's feature, H heads, P head_dim.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dspark.attention.kv_cache import KVCache, Rows
from dspark.attention.ragged import CachedAttention
from dspark.attention.rotary import RopeTable, rotary
from dspark.core import DraftBlock, SamplingParams
from dspark.drafters.block.backbone import DraftAttention, DraftMLP
from dspark.drafters.chain.attention import chain_attention
from dspark.drafters.chain.batch import PositionBatch
from dspark.drafters.chain.config import ChainConfig
from dspark.drafters.drafter import Drafter, DraftMasks
from dspark.maths.losses import DraftLoss, LossWeights, StepTotals, Teacher, draft_loss
from dspark.maths.sampling import choose, slot_peaks
from dspark.targets.layers import RMSNorm


class ChainLayer(nn.Module):
    """Attention and MLP of the one decoder layer; norms before attention are the drafter's.

    Args:
        input_size: width of the attention's input.
    """

    def __init__(self, config: ChainConfig, input_size: int) -> None:
        super().__init__()
        self.self_attn = DraftAttention(config, input_size)
        self.mlp = DraftMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def finish(self, residual: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output from its residual and the attention's mix of values."""
        x = residual + self.self_attn.o_proj(mixed)
        return x + self.mlp(self.post_attention_layernorm(x))


@dataclass(slots=True)
class ChainCache:
    """Keys and values of all requests, and the layer's newest output of each slot [S, D]."""

    kv: KVCache
    output_SD: Tensor


class ChainDrafter(Drafter):
    """One layer, run over the committed text and then step by step along its own chain."""

    Batch = PositionBatch
    gives_peaks: ClassVar[bool] = True
    matrix_modules: ClassVar[tuple[str, ...]] = ("layers.", "fc.", "eh_proj.")

    def __init__(self, config: ChainConfig, layer: ChainLayer) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([layer])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.rope = RopeTable(1.0 / config.rope_theta**half)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    @property
    def layer(self) -> ChainLayer:
        """The one layer."""
        layer = self.layers[0]
        assert isinstance(layer, ChainLayer)
        return layer

    # ---- what a kind decides ----------------------------------------------------------------

    @abstractmethod
    def entry(self, taps_TM: Tensor) -> Tensor:
        """Feature [T, D] of committed positions, from what the target says of them."""

    @abstractmethod
    def follow(self, output: Tensor) -> Tensor:
        """Feature of the next chain step, from the layer's output of this one."""

    @abstractmethod
    def combine(self, embedded: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The attention's input and the layer's residual, from a token and a feature."""

    # ---- training ---------------------------------------------------------------------------

    def chain_outputs(self, batch: PositionBatch) -> Tensor:
        """Training-time test (arXiv 2503.01840): the layer's outputs [Q, K, D] along true tokens.

        Step 0 sees the target's features; step j its own output of step j - 1 at the same
        position, the token at i + 1 + j, rotary position i + j, all step-0 keys up to i and its
        own keys of steps 1 to j.
        """
        layer, attention = self.layer, self.layer.self_attn
        rows_Q, taps_TM = batch.rows_Q, batch.taps_TM
        dtype = taps_TM.dtype
        first, residual_TD = self.combine(
            self.shared.embed(batch.next_ids_T).to(dtype), self.entry(taps_TM)
        )
        cos, sin = rotary(batch.positions_T, self.rope, dtype)
        attend = chain_attention(batch, *attention.keys_values(first, cos, sin))
        queries = attention.queries(first[rows_Q], cos[rows_Q], sin[rows_Q])
        output = layer.finish(residual_TD[rows_Q], attend(queries))
        outputs = [output]
        for step in range(1, self.config.block_size):
            embedded = self.shared.embed(batch.tokens_QK[:, step]).to(dtype)
            normed, residual = self.combine(embedded, self.follow(output))
            cos, sin = rotary(batch.positions_T[rows_Q] + step, self.rope, dtype)
            attend.add_step(*attention.keys_values(normed, cos, sin))
            mixed = attend(attention.queries(normed, cos, sin))
            output = layer.finish(residual, mixed)
            outputs.append(output)
        return torch.stack(outputs, 1)

    def chain_loss(
        self, batch: PositionBatch, weights: LossWeights, totals: StepTotals | None
    ) -> DraftLoss:
        """Loss of all positions and steps under the given weights."""
        hidden_QKD = self.norm(self.chain_outputs(batch))
        teacher = Teacher(batch.last_ND, batch.log_norm_N, self.shared.head, self.shared.cap)
        labels_QK = self.to_draft_ids(batch.labels_QK)
        valid_QK = batch.label_valid_AK
        no_head = (None, None, None)  # features, W_2, confidence
        return draft_loss(hidden_QKD, *no_head, teacher, labels_QK, valid_QK, weights, totals)

    def logits_along(self, batch: PositionBatch, rows: int) -> Iterator[Tensor]:
        """Logits [≤ rows, K, V] of the batch's chains along the true text, in order, float32."""
        hidden_QKD = self.norm(self.chain_outputs(batch))
        for part_NKD in hidden_QKD.split(rows):
            yield self.shared.logits(part_NKD).float()

    # ---- inference --------------------------------------------------------------------------

    def new_cache(self, slots: int, max_len: int) -> ChainCache:
        config, weight = self.config, self.norm.weight
        room = max_len + config.block_size  # a chain runs past the text
        heads, size = config.num_kv_heads, config.head_dim
        kv = KVCache(1, slots, room, heads, size, weight.dtype, weight.device)
        return ChainCache(kv, torch.zeros(slots, config.hidden_size).to(weight))

    def forget(self, cache: ChainCache, slot: int) -> None:
        cache.kv.forget(slot)

    @torch.inference_mode()
    def extend(
        self,
        cache: ChainCache,
        taps_TM: Tensor,
        slots_T: Tensor,
        positions_T: Tensor,
        next_ids_T: Tensor | None,
    ) -> None:
        assert next_ids_T is not None
        if not len(slots_T):
            return
        feature = self.entry(taps_TM.to(self.norm.weight.dtype))
        output_TD = self._run(cache, Rows(next_ids_T, positions_T, slots_T), feature)
        newest_T = torch.ones_like(slots_T, dtype=torch.bool)
        newest_T[:-1] = slots_T[1:] != slots_T[:-1]
        cache.output_SD[slots_T[newest_T]] = output_TD[newest_T]

    def _run(self, cache: ChainCache, rows: Rows, feature_TD: Tensor) -> Tensor:
        """The layer's outputs [T, D]; the rows' keys and values join the cache."""
        layer, attention = self.layer, self.layer.self_attn
        embedded = self.shared.embed(rows.ids_T).to(feature_TD.dtype)
        normed, residual = self.combine(embedded, feature_TD)
        cos, sin = rotary(rows.positions_T, self.rope, feature_TD.dtype)
        attend = CachedAttention(cache.kv, rows, (None,), self.config.head_dim**-0.5)
        queries = attention.queries(normed, cos, sin)
        return layer.finish(residual, attend(0, queries, *attention.keys_values(normed, cos, sin)))

    @torch.inference_mode()
    def draft(
        self,
        cache: ChainCache,
        anchors_R: Sequence[int],
        anchor_pos_R: Sequence[int],
        slots_R: Sequence[int],
        params_R: Sequence[SamplingParams],
        draws_RK: np.ndarray,
        steps: int | None = None,
        masks: DraftMasks | None = None,
        peaks: bool = False,
    ) -> DraftBlock:
        """The first token comes from the newest committed position, whose output is kept.

        Keys of a chain lie behind the text, where the next committed positions replace them.
        """
        slots = torch.tensor(slots_R, device=self.device)
        position = torch.tensor(anchor_pos_R, device=self.device) - 1
        output_RD = cache.output_SD[slots]
        ids: list[Tensor] = []
        probs: list[Tensor] = []
        largest: list[Tensor] = []
        for step in range(steps or self.config.block_size):
            if step:
                rows = Rows(ids[-1], position + step, slots)
                output_RD = self._run(cache, rows, self.follow(output_RD))
            logits = self.shared.logits(self.norm(output_RD)).float()
            if masks is not None:
                logits = masks.apply(logits, ids)
            chosen, probs_RV = choose(logits, params_R, draws_RK, step)
            ids.append(self.to_target_ids(chosen))
            if probs_RV is not None:
                probs.append(probs_RV)
            if peaks:
                largest.append(slot_peaks(params_R, logits, probs_RV))
        lengths = None if masks is None else masks.lengths
        probs_RKV = torch.stack(probs, 1) if probs else None
        block = DraftBlock(torch.stack(ids, 1), probs_RKV, lengths=lengths)
        if peaks:
            block.confidence_RK, block.peaks = torch.stack(largest, 1), True
        return block
