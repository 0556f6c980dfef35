"""The fallback target: any causal language model, through its own Hugging Face module.

Requests run one after the other, each with its own cache, so this path is correct for every
architecture with a croppable cache and fast for none.

Suffixes as in ``target``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark.attention.kv_cache import Rows
from dspark.errors import CheckpointError
from dspark.targets.family import TargetSpec
from dspark.targets.target import Target, softcap


class HFTarget(Target):
    """Target on the Hugging Face module itself."""

    def __init__(
        self,
        name: str,
        spec: TargetSpec,
        tokenizer: Any,
        stop_ids: frozenset[int],
        module: Any,
    ) -> None:
        super().__init__(name, spec, tokenizer, stop_ids)
        self.module, self.base = module, module.base_model
        head, scale = module.get_output_embeddings(), spec.logit_scale
        weight, bias = head.weight.detach(), getattr(head, "bias", None)
        self._weight = weight if scale == 1 else weight * scale
        self.head_bias = None if bias is None else bias.detach() * scale
        self.dtype, self.device = weight.dtype, weight.device
        self._check_head()

    @torch.no_grad()
    def _check_head(self) -> None:
        """Head and softcap on the last state must be all there is between it and the logits."""
        ids_T = torch.arange(min(4, self.spec.vocab_size), device=self.device)
        own = self.logits(self._run(ids_T, 0, None, ())[0]).float()
        theirs = self.module(input_ids=ids_T[None], use_cache=False).logits[0].float()
        if own.shape != theirs.shape or (own - theirs).abs().max() > 0.02 * theirs.abs().max():
            raise CheckpointError(
                f"The target {self.name} makes its logits in a way that is not known here",
                found=f"model type {self.spec.model_type}",
                fix="Use another target",
            )

    @property
    def head_weight(self) -> Tensor:
        return self._weight

    @property
    def embedding_weight(self) -> Tensor:
        return self.module.get_input_embeddings().weight.detach()

    def new_cache(self, slots: int, max_len: int) -> list[Any]:
        from transformers import DynamicCache

        return [DynamicCache() for _ in range(slots)]

    def forget(self, cache: list[Any], slot: int) -> None:
        cache[slot] = type(cache[slot])()

    def _run(
        self, ids_T: Tensor, first: int, past: Any, tap_ids: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        positions = torch.arange(first, first + len(ids_T), device=self.device)
        out = self.base(
            input_ids=ids_T[None],
            position_ids=positions[None],
            past_key_values=past,
            use_cache=past is not None,
            output_hidden_states=bool(tap_ids),
        )
        taps = None
        if tap_ids:
            taps = torch.cat([out.hidden_states[i + 1][0] for i in tap_ids], -1)
        return out.last_hidden_state[0], taps

    @torch.inference_mode()
    def forward(
        self, rows: Rows, cache: list[Any], tap_ids: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        slots, counts = torch.unique_consecutive(rows.slots_T, return_counts=True)
        lasts, taps, start = [], [], 0
        for slot, count in zip(slots.tolist(), counts.tolist(), strict=True):
            first = int(rows.positions_T[start])
            kept = cache[slot].get_seq_length()
            if kept > first:  # rows of a rejected draft, or of the slot's former request
                cache[slot].crop(first - kept)
            last, tap = self._run(rows.ids_T[start : start + count], first, cache[slot], tap_ids)
            lasts.append(last)
            taps.append(tap)
            start += count
        return torch.cat(lasts), torch.cat(taps) if tap_ids else None  # type: ignore[arg-type]

    @torch.no_grad()
    def states(
        self, sequences: Sequence[Sequence[int]], tap_ids: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        ids = [torch.as_tensor(s, dtype=torch.long, device=self.device) for s in sequences]
        pairs = [self._run(x, 0, None, tap_ids) for x in ids]
        taps = [t for _, t in pairs if t is not None]
        return torch.cat([last for last, _ in pairs]), torch.cat(taps) if taps else None

    def embed(self, ids: Tensor) -> Tensor:
        return self.module.get_input_embeddings()(ids).detach()

    def logits(self, last_TD: Tensor) -> Tensor:
        logits = F.linear(last_TD, self._weight, self.head_bias)
        return softcap(logits, self.spec.logit_softcap)
