"""What every drafter is: the interface that engine and trainer call.

Suffixes: R requests, K block slots, T packed rows, D hidden, M taps x D, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dspark.attention.kv_cache import KVCache
from dspark.config import DrafterSection
from dspark.core import DraftBlock, SamplingParams
from dspark.drafters.config import DrafterConfig
from dspark.drafters.shared import SharedWeights
from dspark.drafters.training_batch import TrainingBatch
from dspark.errors import IncompatibleDrafterError
from dspark.maths.losses import LossWeights, StepTotals
from dspark.targets.target import Target


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
        Config: the kind's configuration.
        Recipe: what `[drafter]` of a recipe may say of the kind.
        Batch: what :meth:`loss` takes; one that `training.packing` makes.
        folder: that it was loaded from; None for one made in memory.
        sha256: of its weights file, "" for one made in memory.
    """

    Config: ClassVar[type[DrafterConfig]]
    Recipe: ClassVar[type[DrafterSection]] = DrafterSection
    Batch: ClassVar[type[TrainingBatch]]
    reads_next_ids: ClassVar[bool] = True  # the token after each position, in `extend`
    gives_peaks: ClassVar[bool] = False  # `draft` takes `peaks`
    matrix_modules: ClassVar[tuple[str, ...]] = ("backbone.",)  # whose matrices Muon takes
    head_modules: ClassVar[tuple[str, ...]] = ()  # whose weights `begin_heads` sets

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
    def kind(self) -> str:
        """Its name in the registry."""
        return self.config.kind

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
        self.config.check_fits(target.spec, target.stop_ids)
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

    def begin_heads(
        self, start: DrafterConfig, tensors: dict[str, Tensor], start_ids: Tensor | None
    ) -> list[str]:
        """Take over what `head_modules` hold of a drafter to go on from.

        Args:
            start: its configuration.
            tensors: its weights.
            start_ids: target ids of its reduced draft vocabulary; None for the whole one.

        Returns:
            What is new, in words.
        """
        new = [] if start.sequential_head is None else ["no sequential head"]
        return [*new, "no confidence head"] if start.gives_confidence else new

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
