"""What every drafter is: its configuration, and the interface the engine and trainer call.

Suffixes: R requests, A anchors, K block slots, T packed rows, D hidden, M taps x D, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dspark.attention.kv_cache import KVCache
from dspark.core import DraftBlock, SamplingParams
from dspark.drafters.anchor_batch import make_anchor_batch
from dspark.drafters.training_data import AnchorDraw, TrainingBatch, TrainingSequence
from dspark.errors import IncompatibleDrafterError
from dspark.maths.losses import LossWeights, StepTotals
from dspark.targets.family import TargetSpec
from dspark.targets.layers import PackedLinear
from dspark.targets.target import Target, softcap


@dataclass(frozen=True, slots=True)
class DrafterConfig:
    """Shape of a drafter; sizes in tokens, layers or features.

    Attributes:
        kind: name in the registry.
        target_layer_ids: 0-based decoder layers whose raw output is tapped; none for a drafter
            that looks at the final-normed last state.
        mask_token_id: token that fills slots 2…K of a block; the text never contains it. None
            for a drafter that has no such slots.
        block_size: draft tokens a round; of a chain drafter, the longest chain.
        markov_rank: r of the transition bias; 0 for no sequential head.
        candidates: best parallel logits that the sequential head scores alone; 0 for all.
        draft_vocab_size: tokens the drafter can propose; None for the whole vocabulary.
        sample_from_anchor: slot 1 of a block holds the anchor and predicts the token after it.
    """

    kind: str
    hidden_size: int
    vocab_size: int
    num_target_layers: int
    target_layer_ids: tuple[int, ...]
    mask_token_id: int | None
    block_size: int = 7
    num_layers: int = 2
    num_heads: int = 8
    num_kv_heads: int = 8
    head_dim: int = 64
    intermediate_size: int = 1536
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_positions: int = 8192
    markov_rank: int = 0
    markov_head_type: str = "vanilla"
    candidates: int = 0
    confidence_head: bool = False
    confidence_with_markov: bool = True
    draft_vocab_size: int | None = None
    num_anchors: int = 512
    sample_from_anchor: bool = True
    target_name: str = ""

    @property
    def out_vocab(self) -> int:
        """Width of the drafter's logits."""
        return self.draft_vocab_size or self.vocab_size


def default_tap_ids(num_layers: int, count: int = 5) -> tuple[int, ...]:
    """Taps spread evenly from layer 1 to layer L - 3 (DSpark's public configurations)."""
    last = max(num_layers - 3, 1)
    steps = min(count, last)
    if steps == 1:
        return (max(min(1, num_layers - 2), 0),)
    gaps = steps - 1
    return tuple(1 + (2 * (last - 1) * i + gaps) // (2 * gaps) for i in range(steps))


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


class DraftMasks(Protocol):
    """Keeps drafts inside what their requests may say."""

    def apply(self, logits_RV: Tensor, drafted: Sequence[Tensor]) -> Tensor:
        """Logits of the next slot, -inf where a token may not stand.

        Args:
            drafted: target ids [R] of each slot before it.
        """

    @property
    def lengths(self) -> Sequence[int]:
        """Slots of each request before the first in which it could say nothing."""


class Drafter(nn.Module, ABC):
    """A small model that proposes block_size tokens from the target's taps.

    Subclasses name their parameters as DeepSpec does, so that a state dict is a checkpoint.

    Attributes:
        folder: that it was loaded from; None for one made in memory.
        sha256: of its weights file, "" for one made in memory.
    """

    kind: ClassVar[str]
    reads_taps: ClassVar[bool] = True  # else the final-normed last state
    reads_next_ids: ClassVar[bool] = True  # the token after each position, in `extend`
    has_mask: ClassVar[bool] = True  # blocks with MASK in slots 2…K
    gives_peaks: ClassVar[bool] = False  # `draft` takes `peaks`
    matrix_modules: ClassVar[tuple[str, ...]] = ("backbone.",)  # whose matrices Muon takes

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        self.d2t: Tensor | None
        size = config.draft_vocab_size
        self.register_buffer("d2t", None if size is None else torch.arange(size))
        self._shared: SharedWeights | None = None
        self.folder: Path | None = None
        self.sha256 = ""

    @property
    def shared(self) -> SharedWeights:
        """The bound target's weights; :meth:`bind` must have been called."""
        assert self._shared is not None, "bind the drafter to its target first"
        return self._shared

    def bind(self, target: Target) -> Drafter:
        """Take embedding and head from the target, after checking that the two belong together.

        Raises:
            IncompatibleDrafterError: naming the first value that does not fit, on both sides.
        """
        check_fits(self.config, target.spec, target.stop_ids)
        if target.head_bias is not None:
            raise IncompatibleDrafterError(
                "The target's head has a bias, which drafters here do not share",
                found=f"target {target.name}",
                fix="Run it with --drafter none",
            )
        spec = target.spec
        embedding = target.embedding_weight.to(self.device)
        shared = SharedWeights(
            embedding, target.head_weight, self.d2t, spec.embed_scale, spec.logit_softcap
        )
        own = next(self.parameters()).dtype
        if own is torch.bfloat16 and target.dtype is torch.float32:  # drafting lighter on purpose
            shared.head = shared.head.to(own)
        self.bind_weights(shared)
        return self

    def bind_weights(self, shared: SharedWeights) -> None:
        """Use the given embedding and head (a public checkpoint's own, in tests)."""
        self._shared = shared

    def load_companions(self, folder: Path, weights: Path) -> None:
        """Read what else belongs to the drafter from its folder; by default nothing does.

        Args:
            weights: the file that the parameters came from.

        Raises:
            CheckpointError: a file is damaged.
            IncompatibleDrafterError: it belongs to another drafter.
        """

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    def to_target_ids(self, draft_ids: Tensor) -> Tensor:
        """Draft-vocabulary ids as target ids."""
        return draft_ids if self.d2t is None else self.d2t[draft_ids]

    def to_draft_ids(self, target_ids: Tensor) -> Tensor:
        """Target ids as draft-vocabulary ids, -1 where the drafter cannot say the token."""
        if self.d2t is None:
            return target_ids
        table = torch.full((self.config.vocab_size,), -1, device=target_ids.device)
        table[self.d2t] = torch.arange(len(self.d2t), device=target_ids.device)
        return table[target_ids]

    def training_batch(
        self, sequences: Sequence[TrainingSequence], draw: AnchorDraw
    ) -> TrainingBatch | None:
        """One packed batch for :meth:`loss`; None when nothing can be learned from it.

        By default blocks behind drawn anchors, as the block drafters want them.
        """
        return make_anchor_batch(sequences, draw, self.config.block_size)

    def loss_weights(self, weights: LossWeights) -> LossWeights:
        """The weights that :meth:`loss` goes by, given the recipe's; the recipe's by default."""
        return weights

    @abstractmethod
    def loss(self, batch: Any, weights: Any, totals: StepTotals | None = None) -> Any:
        """Training loss of one packed batch, as the drafter's paper defines it."""

    @abstractmethod
    def new_cache(self, slots: int, max_len: int) -> Any:
        """Per-request state for ``slots`` requests of up to ``max_len`` positions."""

    @property
    def position_bytes(self) -> int:
        """Cache memory of one position of one request."""
        config, dtype = self.config, next(self.parameters()).dtype
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize

    def forget(self, cache: Any, slot: int) -> None:
        """Give a slot's memory back, where the kind of cache can."""
        if isinstance(cache, KVCache):
            cache.forget(slot)

    @abstractmethod
    def extend(
        self,
        cache: Any,
        taps_TM: Tensor,
        slots_T: Tensor,
        positions_T: Tensor,
        next_ids_T: Tensor | None,
    ) -> None:
        """Take newly committed positions into the requests' context.

        Args:
            taps_TM: the target's taps there; its final-normed last states for a drafter that
                taps no layer.
            slots_T, positions_T: where they are; rows of one request together, in order.
            next_ids_T: the token after each of them, known by now too; None where `reads_next_ids`
                is False.
        """

    @abstractmethod
    def draft(
        self,
        cache: Any,
        anchors_R: Sequence[int],
        anchor_pos_R: Sequence[int],
        slots_R: Sequence[int],
        params_R: Sequence[SamplingParams],
        draws_RK: Any,
        steps: int | None = None,
        masks: DraftMasks | None = None,
    ) -> DraftBlock:
        """Propose a block for each request.

        Args:
            cache: context extended up to each anchor (exclusive).
            anchors_R, anchor_pos_R, slots_R: last committed token, its position, cache slot.
            params_R: how each request draws; the draft follows the same temperature and filters.
            draws_RK: uniforms in [0, 1) that the draft tokens are drawn with; unused if greedy.
            steps: draft only so many slots (default: block_size). A drafter whose slots see each
                other may say something else in a shorter block; p_d is what was drawn from.
            masks: rules out, slot by slot, what requests may not say.

        One that `gives_peaks` also takes `peaks`: largest probabilities in place of confidences.
        """


def check_fits(config: DrafterConfig, spec: TargetSpec, stop_ids: frozenset[int]) -> None:
    """Refuse a drafter whose configuration contradicts its target.

    Raises:
        IncompatibleDrafterError: with both values.
    """
    pairs = [
        ("hidden size", config.hidden_size, spec.hidden_size),
        ("vocabulary size", config.vocab_size, spec.vocab_size),
        ("number of target layers", config.num_target_layers, spec.num_layers),
    ]
    for name, mine, theirs in pairs:
        if mine != theirs:
            raise IncompatibleDrafterError(
                f"The drafter was made for another target: {name}",
                found=f"drafter {mine}, target {theirs}",
                fix="Use the drafter of this target, or train one with `dspark train`",
            )
    last = spec.num_layers - 1
    if any(not 0 <= i < last for i in config.target_layer_ids):
        raise IncompatibleDrafterError(
            "The drafter taps a layer that the target does not offer",
            found=f"tap ids {list(config.target_layer_ids)}, target layers 0 to {last - 1}",
            fix="The last layer cannot be tapped: its stored state is already normed",
        )
    mask = config.mask_token_id
    if mask is not None and (not 0 <= mask < spec.vocab_size or mask in stop_ids):
        raise IncompatibleDrafterError(
            "The drafter's mask token cannot be used with this target",
            found=f"mask {mask}, vocabulary {spec.vocab_size}, stop tokens {sorted(stop_ids)}",
            fix="The mask must be an id that no text contains",
        )
    if not config.sample_from_anchor:
        raise IncompatibleDrafterError(
            "The drafter uses the layout with 1 + block_size slots",
            found="drafter sample_from_anchor false, this project true",
            fix="Convert or retrain it anchor-first; read as it is it would accept about 1 %",
        )


def fit_to_target(config: DrafterConfig, spec: TargetSpec) -> DrafterConfig:
    """The configuration with everything that the target dictates filled in."""
    return replace(
        config,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        num_target_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_positions=spec.max_positions,
    )
