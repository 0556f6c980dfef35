"""Models whose behaviour a test decides: a drafter that says what it is told, a target that is a
table, and drafters with random weights; and a short way to ask an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dspark.attention.kv_cache import Rows
from dspark.core import DraftBlock, Request, SamplingParams
from dspark.drafters.config import DrafterConfig, default_tap_ids, fit_to_target
from dspark.drafters.drafter import Drafter
from dspark.drafters.registry import DRAFTERS, make_drafter
from dspark.engine.engine import Engine
from dspark.targets.family import TargetSpec
from dspark.targets.target import Target

Say = Callable[[int, int], list[int]]


def texts(requests: Sequence[Request]) -> list[list[int]]:
    """What each request said."""
    return [request.output_ids for request in requests]


def answer(
    target: Target, drafter: Drafter | None, prompts: Any, params: SamplingParams, **options: Any
) -> list[list[int]]:
    """What a fresh engine with these options says to each prompt; by default by whole blocks."""
    options.setdefault("policy", whole_blocks(drafter))
    return texts(Engine(target, drafter, **options).generate(prompts, params))


def whole_blocks(drafter: Drafter | None) -> str:
    """The policy that drafts and verifies whole blocks in every step, whatever it costs."""
    return f"fixed:{drafter.config.block_size}" if drafter else "off"


def drafter_config(target: Target, block_size: int, **more: Any) -> DrafterConfig:
    """A small drafter's configuration that fits `target`; of the kind "dspark" by default.

    Args:
        more: fields in place of the usual ones; those that the kind does not have are left out.
    """
    shape = DRAFTERS[more.pop("kind", "dspark")].Config
    usual: dict[str, Any] = {
        "hidden_size": 0,
        "vocab_size": 0,
        "num_target_layers": 0,
        "target_layer_ids": default_tap_ids(target.spec.num_layers, 3) if shape.reads_taps else (),
        "mask_token_id": 4,
        "block_size": block_size,
        "num_layers": 1,
        "intermediate_size": 32,
        "markov_rank": 8,
        "confidence_head": True,
    }
    return fit_to_target(with_fields(shape, usual | more), target.spec)


def with_fields(shape: type[DrafterConfig], values: dict[str, Any]) -> DrafterConfig:
    """A kind's configuration of the values that it has fields for."""
    names = {field.name for field in fields(shape)}
    return shape(**{name: value for name, value in values.items() if name in names})


def random_drafter(
    target: Target,
    block_size: int = 5,
    *,
    seed: int = 0,
    vocabulary: Sequence[int] | None = None,
    gain: float = 1.0,
    **more: Any,
) -> Drafter:
    """A drafter with random weights.

    Args:
        vocabulary: target ids it can say; None for all.
        gain: factor on the Markov head's weights, which start small.
    """
    size = None if vocabulary is None else len(vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drafter = make_drafter(drafter_config(target, block_size, draft_vocab_size=size, **more))
    if vocabulary is not None:
        drafter.d2t = torch.tensor(vocabulary)
    for name, weight in drafter.named_parameters():
        if "markov" in name:
            weight.data *= gain
    return drafter.bind(target).eval().requires_grad_(False)


class ScriptedDrafter(Drafter):
    """Says `say(slot, anchor_pos)` and checks that its context is always what it should be.

    Attributes:
        taps: by slot, the taps it was given of each position.
        text: by slot, the token that it was told stands after each position.
    """

    def __init__(self, target: Target, say: Say, block_size: int = 5) -> None:
        super().__init__(drafter_config(target, block_size))
        self.anything = nn.Parameter(torch.zeros(1))
        self.say = say
        self.taps: dict[int, dict[int, Tensor]] = {}
        self.text: dict[int, list[int]] = {}
        self.bind(target)

    def new_cache(self, slots: int, max_len: int) -> None:
        return None

    def extend(
        self,
        cache: Any,
        taps_TM: Tensor,
        slots_T: Tensor,
        positions_T: Tensor,
        next_ids_T: Tensor | None,
    ) -> None:
        assert next_ids_T is not None
        after = next_ids_T.tolist()
        rows = zip(slots_T.tolist(), positions_T.tolist(), taps_TM, after, strict=True)
        for slot, position, taps, next_id in rows:
            if position == 0:
                self.taps[slot], self.text[slot] = {}, []
            self.text[slot].append(next_id)
            assert position == len(self.taps[slot]), "positions come once, in order"
            self.taps[slot][position] = taps

    def loss(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def draft(
        self,
        cache: Any,
        anchors_R: Sequence[int],
        anchor_pos_R: Sequence[int],
        slots_R: Sequence[int],
        params_R: Sequence[SamplingParams],
        draws_RK: Any,
        steps: int | None = None,
        masks: Any = None,
    ) -> DraftBlock:
        assert all(a < b for a, b in pairwise(slots_R))
        steps = steps or self.config.block_size
        rows = []
        for slot, position, anchor in zip(slots_R, anchor_pos_R, anchors_R, strict=True):
            assert len(self.taps[slot]) == position, "context ends before the anchor"
            assert self.text[slot][-1] == anchor
            rows.append((self.say(slot, position) + [0] * steps)[:steps])
        ids_RK = torch.tensor(rows)
        probs = nn.functional.one_hot(ids_RK, self.config.vocab_size).float()
        greedy = all(params.temperature == 0 for params in params_R)
        return DraftBlock(ids_RK, None if greedy else probs)


class TableTarget(Target):
    """A language model whose next token depends on the last three tokens, by a random table.

    It is small enough to enumerate, yet reads its context from a cache as a real one does.
    """

    ORDER = 3

    def __init__(self, vocab: int = 7, stop_ids: Sequence[int] = (), seed: int = 0) -> None:
        hidden, layers = 16, 6
        spec = TargetSpec("table", hidden, layers, 2, 1, 8, 16, vocab, 1e-6, 64)
        super().__init__("table", spec, None, frozenset(stop_ids))
        generator = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.states_CD = normal(vocab**self.ORDER, hidden)
        self.taps_LCD = normal(layers, vocab**self.ORDER, hidden)
        self.head, self.embedding = normal(vocab, hidden) * 0.2, normal(vocab, hidden)

    def context(self, ids: Sequence[int]) -> int:
        """Row of the table for a text."""
        padded = [0] * self.ORDER + list(ids)
        return sum(t * self.spec.vocab_size**i for i, t in enumerate(reversed(padded[-3:])))

    def new_cache(self, slots: int, max_len: int) -> Tensor:
        return torch.zeros(slots, max_len + self.ORDER, dtype=torch.long)

    def forward(
        self, rows: Rows, cache: Tensor, tap_ids: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        cache[rows.slots_T, rows.positions_T + self.ORDER] = rows.ids_T
        contexts_T = torch.zeros_like(rows.ids_T)
        for i in range(self.ORDER):
            token_T = cache[rows.slots_T, rows.positions_T + self.ORDER - i]
            contexts_T += token_T * self.spec.vocab_size**i
        taps = [self.taps_LCD[layer][contexts_T] for layer in tap_ids]
        return self.states_CD[contexts_T], torch.cat(taps, -1) if taps else None

    def states(
        self, sequences: Sequence[Sequence[int]], tap_ids: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding[ids]

    def logits(self, last_TD: Tensor) -> Tensor:
        return last_TD @ self.head.T

    @property
    def head_weight(self) -> Tensor:
        return self.head

    @property
    def embedding_weight(self) -> Tensor:
        return self.embedding
