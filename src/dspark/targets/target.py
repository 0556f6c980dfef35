"""The target: one interface over any Hugging Face causal language model.

``load_target`` gives a :class:`Target` whose forward is the lean one where the family is known
and the Hugging Face module elsewhere; callers cannot tell them apart but by speed.

Suffixes: T packed rows, D hidden, M taps x D, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dspark import native
from dspark.attention.kv_cache import KVCache, Rows
from dspark.attention.ragged import CachedAttention, PackedAttention
from dspark.errors import RequestError
from dspark.targets import kept, kept_target
from dspark.targets.chat_template import Messages
from dspark.targets.choice import choose
from dspark.targets.encoding import PromptEncoder, Tools
from dspark.targets.family import TargetSpec, rope_theta, spec_from_config
from dspark.targets.hf_loading import (
    find_stop_ids,
    load_module,
    load_spec,
    load_tokenizer,
    pick_dtype,
)
from dspark.targets.kept_file import KeptFile
from dspark.targets.layers import PackedLinear
from dspark.targets.lean import LeanModel
from dspark.targets.lean_parts import LeanParts, ModuleParts
from dspark.targets.names import portable_name, resolve_target
from dspark.targets.weights import INT8, SAME, check_weights


class Target(ABC):
    """A frozen language model as drafters and the engine see it.

    Attributes:
        name: what the user called it.
        spec: its facts.
        tokenizer: the Hugging Face tokenizer.
        stop_ids: tokens that end an answer.
        head_bias: [V] added to the logits, where the head has one.
        rope_theta: base of the rotary frequencies; drafters take it over.
        dtype, device: of embedding, arithmetic and caches.
        weights: what the products' weights are kept as (``targets.weights``).
    """

    def __init__(
        self, name: str, spec: TargetSpec, tokenizer: Any, stop_ids: frozenset[int]
    ) -> None:
        self.name, self.spec, self.tokenizer, self.stop_ids = name, spec, tokenizer, stop_ids
        self.rope_theta = 10_000.0
        self.head_bias: Tensor | None = None
        self.dtype: torch.dtype = torch.float32
        self.device = torch.device("cpu")
        self.weights = SAME

    @property
    def dtype_name(self) -> str:
        """The number type as options name it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def precision(self) -> str:
        """`dtype_name`, with the weights' own where they are another, as in bfloat16+int8."""
        return self.dtype_name if self.weights == SAME else f"{self.dtype_name}+{self.weights}"

    @abstractmethod
    def new_cache(self, slots: int, max_len: int) -> Any:
        """Memory for ``slots`` requests of up to ``max_len`` positions each."""

    @property
    def position_bytes(self) -> int:
        """Cache memory of one position of one request."""
        spec = self.spec
        return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * self.dtype.itemsize

    def forget(self, cache: Any, slot: int) -> None:
        """Give a slot's memory back, where the kind of cache can."""
        if isinstance(cache, KVCache):
            cache.forget(slot)

    @abstractmethod
    def forward(
        self, rows: Rows, cache: Any, tap_ids: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Run rows of several requests against their caches and extend these.

        Returns:
            The final-normed last state [T, D] and the concatenated taps [T, M] (or None).
        """

    @abstractmethod
    def states(
        self, sequences: Sequence[Sequence[int]], tap_ids: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """One frozen pass over whole sequences, as training wants it.

        Returns:
            Final-normed last states [T, D] and taps [T, M] (or None), sequences end to end.
        """

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Input embedding [..., D] with the family's scale."""

    @abstractmethod
    def logits(self, last_TD: Tensor) -> Tensor:
        """Logits [T, V] of final-normed states, the family's softcap applied."""

    @property
    @abstractmethod
    def head_weight(self) -> Tensor:
        """Language-model head [V, D]."""

    @property
    @abstractmethod
    def embedding_weight(self) -> Tensor:
        """Input embedding [V, D], unscaled."""

    @property
    def max_positions(self) -> int:
        """Longest text the target was made for, in tokens."""
        return self.spec.max_positions

    @cached_property
    def prompts(self) -> PromptEncoder:
        """Makes token ids of prompts."""
        name = portable_name(self.name)
        return PromptEncoder(self.tokenizer, name, self.stop_ids, self.max_positions)

    def encode(self, prompt: str, *, raw: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of a prompt: one user turn of the chat template, or the bare text.

        Args:
            parse_special: of a bare text, read spellings of control tokens as those tokens.

        Raises:
            RequestError: for an empty prompt or one that leaves no room to answer.
        """
        if not prompt.strip():
            raise RequestError("The prompt is empty", fix="Give at least one word")
        if raw:
            return self.prompts.text(prompt, parse_special)
        return self.encode_messages([{"role": "user", "content": prompt}])

    def encode_messages(self, messages: Messages, tools: Tools = None) -> list[int]:
        """Token ids of a conversation up to the point where the assistant speaks.

        What messages and tools spell is text, never a control token (`targets.encoding`).

        Raises:
            RequestError: see `PromptEncoder.messages`.
        """
        return self.prompts.messages(messages, tools)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


class LeanTarget(Target):
    """Target on the lean forward (Llama, Qwen3, Gemma 3).

    Args:
        source: the Hugging Face module, or parts of it that were kept.

    Attributes:
        model: the decoder.
        head_product: the language-model head, laid out.
    """

    def __init__(
        self,
        name: str,
        spec: TargetSpec,
        tokenizer: Any,
        stop_ids: frozenset[int],
        source: Any,
        weights: str = SAME,
    ) -> None:
        super().__init__(name, spec, tokenizer, stop_ids)
        self.weights = weights
        parts = source
        if not isinstance(source, LeanParts):
            parts = ModuleParts(source, spec, weights == INT8)
        self.model = LeanModel(spec, parts)
        self._head_weight, self.head_product = parts.head()
        self.dtype, self.device = self._head_weight.dtype, self._head_weight.device

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights that a step reads: all products', the head's among them."""
        linears = [m for m in self.model.modules() if isinstance(m, PackedLinear)]
        return sum(linear.nbytes for linear in (*linears, self.head_product))

    @property
    def head_weight(self) -> Tensor:
        return self._head_weight

    @property
    def embedding_weight(self) -> Tensor:
        return self.model.embedding

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        spec = self.spec
        return KVCache(
            spec.num_layers,
            slots,
            max_len,
            spec.num_kv_heads,
            spec.head_dim,
            self.dtype,
            self.device,
        )

    @torch.inference_mode()
    def forward(
        self, rows: Rows, cache: KVCache, tap_ids: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        attend = CachedAttention(cache, rows, self.spec.layer_windows, self.spec.attention_scale)
        return self.model(rows.ids_T, rows.positions_T, attend, tap_ids)

    @torch.no_grad()
    def states(
        self, sequences: Sequence[Sequence[int]], tap_ids: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        lengths = [len(s) for s in sequences]
        ids_T = torch.cat([torch.as_tensor(s, dtype=torch.long) for s in sequences])
        positions_T = torch.cat([torch.arange(n) for n in lengths])
        attend = PackedAttention(lengths, self.spec.layer_windows, self.spec.attention_scale)
        return self.model(ids_T.to(self.device), positions_T.to(self.device), attend, tap_ids)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embed(ids)

    def logits(self, last_TD: Tensor) -> Tensor:
        return softcap(self.head_product(last_TD), self.spec.logit_softcap)


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """c·tanh(logits / c), or the logits themselves without a cap."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def load_target(
    name: str | Path, dtype: str = "auto", device: str = "cpu", weights: str = SAME
) -> Target:
    """Load a target by known name, local folder or Hugging Face id.

    On a processor the kernel level that is the fastest for it serves from then on
    (``targets.choice``).

    Args:
        dtype: of weights and arithmetic; "auto" is the fastest of bfloat16 and float32 here.
        weights: "int8" keeps those of the products in eight bits (``targets.weights``).

    Raises:
        CheckpointError: when nothing loadable is found, or files are damaged.
        ConfigError: weights of eight bits are not served for it here.
    """
    if torch.device(device).type == "cuda":
        # cuDNN plans anew for every shape, which takes longer than the step of a small model.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if dtype != "auto":
        pick_dtype(dtype)
    where = resolve_target(str(name))
    place = kept.find_place(where) if torch.device(device).type == "cpu" else None
    spec = load_spec(name) if place is None else place.spec
    check_weights(weights, spec, dtype, device)
    choice = choose(spec, dtype, device, weights)
    if choice.level:
        native.use(choice.level)
    if place is not None and (file := kept_target.find(place, choice.dtype, weights)) is not None:
        return _from_kept(str(name), place, file, weights)
    stamps = kept.stamp(Path(where))
    target = _from_module(name, choice.dtype, device, weights)
    if isinstance(target, LeanTarget) and target.device.type == "cpu" and stamps:
        kept_target.keep(target, Path(where), stamps)
    return target


def _from_kept(name: str, place: kept.Place, file: KeptFile, weights: str) -> LeanTarget:
    def whole() -> Any:
        return load_tokenizer(place.folder)

    tokenizer, stop_ids = kept_target.tokenizer_of(file, whole), frozenset(file.fields["stop_ids"])
    parts = kept_target.KeptParts(file, place.spec)
    target = LeanTarget(name, place.spec, tokenizer, stop_ids, parts, weights)
    target.rope_theta = file.fields["rope_theta"]
    return target


def _from_module(name: str | Path, dtype: str, device: str, weights: str) -> Target:
    from dspark.targets.hf_target import HFTarget

    module, tokenizer = load_module(name, dtype, device)
    spec = spec_from_config(module.config)
    stop_ids = find_stop_ids(module, tokenizer)
    target: Target
    if spec.is_lean and hasattr(module, "model"):
        target = LeanTarget(str(name), spec, tokenizer, stop_ids, module, weights)
    else:
        target = HFTarget(str(name), spec, tokenizer, stop_ids, module)
    target.rope_theta = rope_theta(module.config)
    return target
