"""The block drafters: packed training against inference, who sees whom, heads, drawing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dspark.core import DraftBlock, SamplingParams
from dspark.drafters.block.batch import AnchorBatch
from dspark.drafters.block.losses import BlockOutputs
from dspark.drafters.config import DrafterConfig, default_tap_ids, fit_to_target
from dspark.drafters.dflash import DFlashConfig
from dspark.drafters.dspark import DSparkConfig, DSparkDrafter
from dspark.drafters.registry import DRAFTERS, drafter_class, make_drafter
from dspark.drafters.shared import SharedWeights
from dspark.errors import ConfigError, IncompatibleDrafterError
from dspark.maths.losses import LossWeights
from dspark.targets.layers import pack_linears
from dspark.targets.target import Target, load_target
from fakes import MASK_ID, tiny_target_folder
from scripted import with_fields

V, D, K, R, TAPS = 60, 32, 5, 6, 3
CONFIG = DSparkConfig(
    hidden_size=D,
    vocab_size=V,
    num_target_layers=8,
    target_layer_ids=(1, 3, 5),
    mask_token_id=MASK_ID,
    block_size=K,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_positions=128,
    markov_rank=R,
    confidence_head=True,
)
KINDS: dict[str, DrafterConfig] = {
    "vanilla": CONFIG,
    "gated": replace(CONFIG, markov_head_type="gated"),
    "rnn": replace(CONFIG, markov_head_type="rnn"),
    "residual_rnn": replace(CONFIG, markov_head_type="residual_rnn"),
    "refined": replace(CONFIG, markov_head_type="refined"),
    "selector": replace(CONFIG, markov_head_type="selector"),
    "candidates": replace(CONFIG, candidates=6),
    "few-refined": replace(CONFIG, candidates=6, markov_head_type="refined", draft_vocab_size=23),
    "reduced": replace(CONFIG, draft_vocab_size=23),
    "blind-confidence": replace(CONFIG, confidence_with_markov=False),
    "no-confidence": replace(CONFIG, confidence_head=False),
    "no-markov": replace(CONFIG, markov_rank=0),
    "dflash": with_fields(DFlashConfig, asdict(CONFIG)),
}
NEW_HEADS = ["residual_rnn", "refined", "selector"]
WITH_HEAD = ["vanilla", "gated", "rnn", *NEW_HEADS, "candidates", "few-refined", "reduced"]
GREEDY, WARM = SamplingParams(), SamplingParams(temperature=1.0)


def normal(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def built(config: DrafterConfig, shared: SharedWeights | None = None) -> Any:
    """A drafter whose every weight matters (fresh ones are too small, or zero)."""
    drafter: Any = make_drafter(config)
    with torch.no_grad():
        for seed, weight in enumerate(drafter.parameters()):
            fan = weight.shape[-1] if weight.dim() > 1 else 10
            weight.add_(normal(*weight.shape, seed=seed, std=1.2 * fan**-0.5))
        if drafter.d2t is not None:
            drafter.d2t.copy_(
                torch.arange(5, V)[:: V // config.draft_vocab_size][: len(drafter.d2t)]
            )
    if shared is None:
        head = normal(V, D, seed=91, std=2 * D**-0.5)
        shared = SharedWeights(normal(V, D, seed=90), head, drafter.d2t)
    drafter.bind_weights(shared)
    return drafter.eval()


@pytest.fixture(params=list(KINDS))
def drafter(request: pytest.FixtureRequest) -> Any:
    return built(KINDS[request.param])


@pytest.fixture(params=WITH_HEAD)
def with_head(request: pytest.FixtureRequest) -> Any:
    return built(KINDS[request.param])


class Story:
    """Sequences with their taps, and anchors in them."""

    def __init__(self, anchors: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.anchors = [torch.tensor(a, dtype=torch.long) for a in anchors]
        total = sum(lengths)
        self.taps = normal(total, TAPS * D, seed=3)
        draw = torch.Generator().manual_seed(4)
        self.ids = torch.randint(5, V, (total + K,), generator=draw)
        self.starts = list(itertools.accumulate([0, *lengths[:-1]]))

    @property
    def places(self) -> list[tuple[int, int]]:
        """(sequence, anchor) of every block in packed order."""
        return [(s, a) for s, own in enumerate(self.anchors) for a in own.tolist()]

    @property
    def anchor_ids(self) -> Tensor:
        return torch.stack([self.ids[self.starts[s] + a] for s, a in self.places])

    @property
    def labels(self) -> Tensor:
        rows = [self.ids[self.starts[s] + a + 1 :][:K] for s, a in self.places]
        return torch.stack(rows)

    def packed(self, drafter: Any, **changed: Any) -> BlockOutputs:
        given = {"taps": self.taps, "anchor_ids": self.anchor_ids, "labels": self.labels} | changed
        with torch.no_grad():
            return drafter.block_outputs(
                given["taps"], self.lengths, self.anchors, given["anchor_ids"], given["labels"]
            )

    def context(self, block: int) -> Tensor:
        sequence, anchor = self.places[block]
        return self.taps[self.starts[sequence] :][:anchor]


STORY = Story([[3, 10, 11, 19], [0, 8], [], [30]], [24, 9, 6, 31])


def filled(drafter: Any, contexts: Sequence[Tensor], slots: Sequence[int]) -> Any:
    """A cache with each context in its slot."""
    cache = drafter.new_cache(max(slots) + 1, 96)
    for context, slot in zip(contexts, slots, strict=True):
        if len(context):
            rows = torch.arange(len(context))
            drafter.extend(cache, context, torch.full_like(rows, slot), rows, rows)
    return cache


def draft(
    drafter: Any,
    contexts: Sequence[Tensor],
    anchors: Sequence[int],
    params: SamplingParams | Sequence[SamplingParams] = GREEDY,
    draws: np.ndarray | None = None,
    slots: Sequence[int] | None = None,
    cache: Any = None,
    steps: int | None = None,
) -> tuple[DraftBlock, Tensor]:
    """A block for each context, and the hidden states [R, slots, D] behind it."""
    slots = list(range(len(contexts))) if slots is None else slots
    cache = filled(drafter, contexts, slots) if cache is None else cache
    seen: list[Tensor] = []
    hook = drafter.backbone.register_forward_hook(lambda *call: seen.append(call[2]))
    params = [params] * len(contexts) if isinstance(params, SamplingParams) else params
    positions = [len(c) for c in contexts]
    block = drafter.draft(cache, list(anchors), positions, slots, params, draws, steps)
    hook.remove()
    return block, seen[0].view(len(contexts), -1, drafter.config.hidden_size)


def scored(drafter: Any, base: Tensor, bias: Tensor) -> Tensor:
    """Logits of a draft: base and bias, and nothing outside the candidates, if there are any."""
    count = drafter.candidates
    if not count:
        return base + bias
    edge = base.sort(-1, descending=True).values[..., count - 1 : count]
    return torch.where(base >= edge, base + bias, float("-inf"))


def near(found: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


# ---- training and inference are one computation -------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("layout", ["trained", "packed"])
def test_packed_blocks_equal_drafting(drafter: Any, together: bool, layout: str) -> None:
    out = STORY.packed(drafter)
    if layout == "packed":
        pack_linears(drafter)
    contexts = [STORY.context(block) for block in range(len(STORY.places))]
    ids = STORY.anchor_ids.tolist()
    if together:
        hidden = draft(drafter, contexts, ids)[1]
    else:
        hidden = torch.cat(
            [draft(drafter, [c], [i])[1] for c, i in zip(contexts, ids, strict=True)]
        )
    near(out.hidden_AKD, hidden)


def test_more_anchors_than_a_group_holds() -> None:
    drafter = built(KINDS["vanilla"])
    story = Story([range(2, 90, 2), [1, 5]], [92, 7])
    assert len(story.anchors[0]) > 32
    contexts = [story.context(block) for block in range(len(story.places))]
    hidden = draft(drafter, contexts, story.anchor_ids.tolist())[1]
    near(story.packed(drafter).hidden_AKD, hidden)


def test_confidence_and_logits_agree_given_the_same_tokens(drafter: Any) -> None:
    """Feed the drafted tokens back as labels: heads must say in training what they said then."""
    contexts = [STORY.context(block) for block in range(len(STORY.places))]
    draws = np.random.default_rng(0).random((len(contexts), K))
    block, _ = draft(drafter, contexts, STORY.anchor_ids.tolist(), WARM, draws)
    out = STORY.packed(drafter, labels=block.draft_ids_RK)
    logits = drafter.shared.logits(out.hidden_AKD)
    if drafter.markov_head is not None:
        logits = scored(drafter, logits, drafter.markov_head.bias(out.features_AKr))
    near(block.draft_probs_RKV, logits.softmax(-1).detach())
    if not drafter.config.gives_confidence:
        assert block.confidence_RK is None
        assert out.confidence_AK is None
    else:
        near(block.confidence_RK, out.confidence_AK.sigmoid())


def test_cache_may_be_extended_in_pieces() -> None:
    drafter = built(KINDS["vanilla"])
    contexts, slots = [normal(21, TAPS * D, seed=1), normal(13, TAPS * D, seed=2)], [4, 1]
    whole = filled(drafter, contexts, slots)
    pieces = drafter.new_cache(5, 96)
    for first, second in [((0, 8), (0, 1)), ((8, 9), (1, 7)), ((9, 21), (7, 13))]:
        spans = [(0, *first), (1, *second)]
        taps = torch.cat([contexts[r][a:b] for r, a, b in spans])
        at = torch.cat([torch.arange(a, b) for _, a, b in spans])
        where = torch.cat([torch.full((b - a,), slots[r]) for r, a, b in spans])
        drafter.extend(pieces, taps, where, at, at)
        # A draft in between writes its own rows; the next context rows replace them.
        reached = [contexts[r][:b] for r, _, b in spans]
        draft(drafter, reached, [7, 8], slots=slots, cache=pieces)
    first = draft(drafter, contexts, [7, 8], slots=slots, cache=whole)
    second = draft(drafter, contexts, [7, 8], slots=slots, cache=pieces)
    near(first[1], second[1])
    assert torch.equal(first[0].draft_ids_RK, second[0].draft_ids_RK)


def test_cache_has_room_for_a_block_behind_the_last_position() -> None:
    drafter = built(KINDS["vanilla"])
    context, other = normal(16, TAPS * D, seed=1), normal(16, TAPS * D, seed=2)
    cache = drafter.new_cache(2, 16)
    for slot, taps in enumerate([context, other]):
        drafter.extend(cache, taps, torch.full((16,), slot), torch.arange(16), torch.arange(16))
    found = draft(drafter, [context, other], [7, 8], cache=cache)[1]
    near(found, draft(drafter, [context, other], [7, 8])[1])


# ---- who sees whom ------------------------------------------------------------------------------


def test_a_block_sees_no_context_from_its_anchor_on() -> None:
    drafter = built(KINDS["vanilla"])
    before = STORY.packed(drafter).hidden_AKD
    for block, (sequence, anchor) in enumerate(STORY.places):
        taps, start = STORY.taps.clone(), STORY.starts[sequence]
        taps[start + anchor :] += 1.0
        taps[:start] += 1.0
        assert torch.equal(STORY.packed(drafter, taps=taps).hidden_AKD[block], before[block])
        if anchor:
            taps = STORY.taps.clone()
            taps[start + anchor - 1] += 1.0
            after = STORY.packed(drafter, taps=taps).hidden_AKD[block]
            assert (after - before[block]).abs().max(-1).values.min() > 1e-3


def test_a_block_sees_no_other_block() -> None:
    drafter = built(KINDS["vanilla"])
    before = STORY.packed(drafter).hidden_AKD
    for block in range(len(STORY.places)):
        ids = STORY.anchor_ids
        ids[block] = (ids[block] + 1) % V
        after = STORY.packed(drafter, anchor_ids=ids).hidden_AKD
        changed = (after - before).abs().amax(-1)
        assert changed[block].min() > 1e-4  # both directions: every slot sees the anchor's
        changed[block] = 0
        assert not changed.any()


def test_hidden_states_do_not_know_the_labels(drafter: Any) -> None:
    other = STORY.packed(drafter, labels=STORY.labels.flip(0))
    assert torch.equal(other.hidden_AKD, STORY.packed(drafter).hidden_AKD)


@pytest.mark.parametrize("kind", [*WITH_HEAD, "blind-confidence"])
@pytest.mark.parametrize("slot", range(K))
def test_confidence_does_not_see_its_own_token(kind: str, slot: int) -> None:
    drafter = built(KINDS[kind])
    labels = STORY.labels
    labels[:, slot] = (labels[:, slot] + 7) % V
    before, after = STORY.packed(drafter), STORY.packed(drafter, labels=labels)
    moved = (after.confidence_AK - before.confidence_AK).abs().amax(0) > 1e-4
    seen_next = kind != "blind-confidence" and slot + 1 < K
    assert moved.tolist() == [seen_next and k == slot + 1 for k in range(K)]
    if kind in ("rnn", "residual_rnn", "refined") and slot + 1 < K:  # features do carry on
        features = (after.features_AKr - before.features_AKr).abs().amax((0, 2)) > 1e-6
        assert features.tolist() == [k > slot for k in range(K)]


@pytest.mark.parametrize("kind", [kind for kind in WITH_HEAD if kind != "few-refined"])
@pytest.mark.parametrize("slot", range(K))
def test_drawn_confidence_does_not_see_its_own_token(kind: str, slot: int) -> None:
    drafter = built(KINDS[kind])
    context = normal(9, TAPS * D, seed=1)
    draws = np.full((2, K), 0.4)
    draws[1, slot] = 0.97
    block, _ = draft(drafter, [context, context], [7, 7], WARM, draws)
    ids, confidence = block.draft_ids_RK, block.confidence_RK
    assert ids[0, slot] != ids[1, slot]
    near(confidence[0, : slot + 1], confidence[1, : slot + 1], atol=1e-6)
    if slot + 1 < K:
        assert abs(confidence[0, slot + 1] - confidence[1, slot + 1]) > 1e-4


# ---- heads by their formulas --------------------------------------------------------------------


def reference_features(drafter: Any, previous: Tensor, hidden: Tensor) -> Tensor:
    """Features [A, K, r] slot by slot, with plain products (DSpark §3.1)."""
    weights = {k: v.detach() for k, v in drafter.markov_head.state_dict().items()}
    kind = drafter.config.markov_head_type
    blocks = []
    for ids, states in zip(previous.tolist(), hidden, strict=True):
        state, rows, seen = torch.zeros(R), list[Tensor](), list[Tensor]()
        for token, h in zip(ids, states, strict=True):
            w1 = weights["markov_w1.weight"][token]
            seen.append(w1)
            if kind == "gated":
                gate = weights["gate_proj.weight"] @ torch.cat([h, w1]) + weights["gate_proj.bias"]
                w1 = w1 / (1 + torch.exp(-gate))
            elif kind == "selector":
                w1 = w1 * (1 + weights["state_proj.weight"] @ h + weights["state_proj.bias"])
            elif kind == "refined":
                mixed, k = torch.zeros(R), len(seen) - 1
                for j in range(k):
                    mixed = mixed + weights["mix"][k, j] * seen[j]
                both = weights["gate_up.weight"] @ torch.cat([h, w1, mixed])
                both = both + weights["gate_up.bias"]
                gated = both[:R] / (1 + torch.exp(-both[:R])) * both[R:]
                w1 = w1 + weights["update.weight"] @ gated
            elif kind in ("rnn", "residual_rnn"):
                joint = torch.cat([state, w1, h])
                z = weights["joint_proj.weight"] @ joint + weights["joint_proj.bias"]
                keep = 1 / (1 + torch.exp(-z[:R]))
                state = keep * state + (1 - keep) * torch.tanh(z[R : 2 * R])
                w1 = torch.tanh(z[2 * R :]) + (w1 if kind == "residual_rnn" else 0)
            rows.append(w1)
        blocks.append(torch.stack(rows))
    return torch.stack(blocks)


def test_features_follow_the_formulas(with_head: Any) -> None:
    out = STORY.packed(with_head)
    previous = torch.cat([STORY.anchor_ids[:, None], STORY.labels[:, :-1]], 1)
    near(out.features_AKr, reference_features(with_head, previous, out.hidden_AKD))


@pytest.mark.parametrize("kind", NEW_HEADS)
def test_further_heads_begin_as_the_vanilla_head(kind: str) -> None:
    """Bit for bit: the same weights drawn, and an update of exactly nothing."""
    made = []
    for name in ("vanilla", kind):
        torch.manual_seed(3)
        made.append(make_drafter(KINDS[name]).eval())
        made[-1].bind_weights(SharedWeights(normal(V, D, seed=90), normal(V, D, seed=91)))
    vanilla, other = made
    before, after = STORY.packed(vanilla), STORY.packed(other)
    assert torch.equal(before.features_AKr, after.features_AKr)
    biases = [
        d.markov_head.bias(out.features_AKr) for d, out in zip(made, (before, after), strict=True)
    ]
    assert torch.equal(*biases)
    assert biases[0].abs().max() > 0
    context, draws = normal(9, TAPS * D, seed=1), np.full((1, K), 0.4)
    blocks = []
    for drafter in made:
        cache = filled(drafter, [context], [0])
        cache.transitions = None  # which add up in another order
        blocks.append(draft(drafter, [context], [7], WARM, draws, cache=cache)[0])
    assert torch.equal(blocks[0].draft_probs_RKV, blocks[1].draft_probs_RKV)
    with torch.no_grad():  # and it is no more than a beginning
        [weight.add_(0.1) for weight in other.markov_head.parameters()]
    assert not torch.equal(STORY.packed(other).features_AKr, after.features_AKr)


@pytest.mark.parametrize("kind", ["candidates", "few-refined"])
def test_a_draft_is_one_of_the_candidates(kind: str) -> None:
    drafter = built(KINDS[kind])
    context, n = normal(9, TAPS * D, seed=1), 300
    draws = np.random.default_rng(4).random((n, K))
    block, hidden = draft(drafter, [context] * n, [7] * n, WARM, draws)
    candidates = drafter.shared.logits(hidden).topk(6).indices
    assert torch.equal((block.draft_probs_RKV > 0).sum(-1), torch.full((n, K), 6))
    assert bool((block.draft_probs_RKV.gather(2, candidates) > 0).all())
    drafted = drafter.to_draft_ids(block.draft_ids_RK)
    assert bool((candidates == drafted[..., None]).any(-1).all())
    assert len(set(drafted[:, 0].tolist())) > 2


def test_candidates_are_chosen_among_what_may_stand() -> None:
    drafter = built(KINDS["candidates"])
    context = normal(9, TAPS * D, seed=1)
    allowed = [3, 11, 29, 41]

    class Few:
        lengths = (K,)

        def apply(self, logits: Tensor, drafted: Any) -> Tensor:
            mask = torch.full_like(logits, float("-inf"))
            mask[:, allowed] = 0
            return logits + mask

    cache = filled(drafter, [context], [0])
    for params in (GREEDY, WARM):
        block = drafter.draft(cache, [7], [9], [0], [params], np.full((1, K), 0.7), masks=Few())
        assert set(block.draft_ids_RK.flatten().tolist()) <= set(allowed)
    assert bool(((block.draft_probs_RKV > 0).sum(-1) == len(allowed)).all())


def test_candidates_without_a_head_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"candidates 6, drafter\.markov_rank 0"):
        make_drafter(replace(CONFIG, candidates=6, markov_rank=0))


def test_confidence_is_a_linear_layer_on_hidden_and_previous(with_head: Any) -> None:
    out = STORY.packed(with_head)
    head, w1 = with_head.confidence_head.proj, with_head.markov_head.markov_w1.weight
    previous = torch.cat([STORY.anchor_ids[:, None], STORY.labels[:, :-1]], 1)
    expected = out.hidden_AKD @ head.weight[0, :D] + w1[previous] @ head.weight[0, D:] + head.bias
    near(out.confidence_AK, expected.detach())


def by_hand(drafter: Any, anchor: int, hidden: Tensor) -> tuple[list[int], Tensor]:
    """Greedy block of one request from its hidden states, and the logits behind it."""
    d2t = list(range(V)) if drafter.d2t is None else drafter.d2t.tolist()
    head = drafter.shared.head
    ids, rows = [anchor], []
    for k in range(K):
        logits = head @ hidden[k]
        if drafter.markov_head is not None:
            features = reference_features(drafter, torch.tensor([ids]), hidden[None, : k + 1])
            bias = drafter.markov_head.markov_w2.weight.detach() @ features[0, -1]
            logits = scored(drafter, logits, bias)
        rows.append(logits)
        ids.append(d2t[int(logits.argmax())])
    return ids[1:], torch.stack(rows)


def test_greedy_block_is_the_chain_of_favourites(drafter: Any) -> None:
    contexts = [STORY.context(block) for block in range(len(STORY.places))]
    anchors = STORY.anchor_ids.tolist()
    block, hidden = draft(drafter, contexts, anchors)
    assert block.draft_probs_RKV is None
    expected = [by_hand(drafter, a, h)[0] for a, h in zip(anchors, hidden, strict=True)]
    assert block.draft_ids_RK.tolist() == expected
    if drafter.markov_head is not None:  # the bias decides somewhere, or this test is idle
        parallel = drafter.to_target_ids(drafter.shared.logits(hidden).argmax(-1))
        assert not torch.equal(parallel, block.draft_ids_RK)


def test_dflash_has_no_heads() -> None:
    drafter = built(KINDS["dflash"])
    assert drafter.config.sequential_head is None
    assert not drafter.config.gives_confidence
    assert not any("head" in key for key in drafter.state_dict())
    out = STORY.packed(drafter)
    assert out.features_AKr is None
    assert out.confidence_AK is None


def test_registry() -> None:
    assert all(drafter.Config.kind == name for name, drafter in DRAFTERS.items())
    with pytest.raises(ConfigError, match=r"Unknown drafter kind \(found: medusa\).*dspark"):
        drafter_class("medusa")
    with pytest.raises(ConfigError, match=r"markov_head_type \(found: lstm\).*vanilla, gated, rnn"):
        make_drafter(replace(CONFIG, markov_head_type="lstm"))


# ---- drawing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(1, K))
def test_few_steps_are_a_drafter_with_that_block_size(drafter: Any, steps: int) -> None:
    """No slot is drafted beyond those asked for, and those drafted see no other."""
    contexts, anchors = [STORY.context(1), STORY.context(2)], [7, 9]
    pack_linears(drafter)
    draws = np.random.default_rng(1).random((2, K))
    short, hidden = draft(drafter, contexts, anchors, WARM, draws, steps=steps)
    assert hidden.shape[:2] == (2, steps)
    drafter.config = replace(drafter.config, block_size=steps)
    own, _ = draft(drafter, contexts, anchors, WARM, draws)
    assert short.draft_ids_RK.shape == (2, steps)
    assert torch.equal(short.draft_ids_RK, own.draft_ids_RK)
    near(short.draft_probs_RKV, own.draft_probs_RKV)
    if own.confidence_RK is not None:
        near(short.confidence_RK, own.confidence_RK)


def test_batch_mates_change_nothing(drafter: Any) -> None:
    contexts = [STORY.context(block) for block in range(len(STORY.places))]
    anchors = STORY.anchor_ids.tolist()
    params = [GREEDY, WARM, SamplingParams(temperature=0.6, top_k=4), GREEDY]
    params += [SamplingParams(temperature=1.3, top_p=0.7), WARM, WARM]
    draws = np.random.default_rng(2).random((len(contexts), K))
    slots = [6, 2, 3, 0, 9, 4, 5]
    mixed, _ = draft(drafter, contexts, anchors, params, draws, slots)
    for r, own in enumerate(params):
        alone, _ = draft(drafter, contexts[r : r + 1], anchors[r : r + 1], own, draws[r : r + 1])
        assert alone.draft_ids_RK.tolist() == mixed.draft_ids_RK[r : r + 1].tolist()
        probs = mixed.draft_probs_RKV[r]
        if own.temperature == 0:  # greedy beside others: all mass on the drafted token
            assert alone.draft_probs_RKV is None
            drafted = drafter.to_draft_ids(mixed.draft_ids_RK[r])
            assert torch.equal(probs, F.one_hot(drafted, probs.shape[-1]).float())
        else:
            near(alone.draft_probs_RKV[0], probs)
        assert (probs > 0).sum(-1).max() <= (own.top_k or V)


def test_probabilities_are_those_of_base_and_bias(with_head: Any) -> None:
    """Temperature acts on the sum; W_1 is looked up by target id, whatever the draft id."""
    context = normal(9, TAPS * D, seed=1)
    draws = np.random.default_rng(3).random((6, K))
    params = SamplingParams(temperature=0.7)
    block, hidden = draft(with_head, [context] * 6, [7] * 6, params, draws)
    near(block.draft_probs_RKV.sum(-1), torch.ones(6, K))
    assert block.draft_probs_RKV.shape[-1] == with_head.config.out_vocab
    for r in range(6):
        previous = torch.tensor([[7, *block.draft_ids_RK[r, :-1].tolist()]])
        features = reference_features(with_head, previous, hidden[r][None])[0]
        logits = hidden[r] @ with_head.shared.head.T
        bias = features @ with_head.markov_head.markov_w2.weight.detach().T
        logits = scored(with_head, logits, bias)
        near(block.draft_probs_RKV[r], (logits / 0.7).softmax(-1))


@pytest.mark.parametrize("kind", ["vanilla", "reduced", "dflash"])
def test_drawn_ids_follow_the_probabilities(kind: str) -> None:
    """Evenly spread draws give every token its share to within one."""
    drafter, n = built(KINDS[kind]), 400
    context = normal(9, TAPS * D, seed=1)
    draws = np.full((n, K), 0.5)
    draws[:, 0] = (np.arange(n) + 0.5) / n
    block, _ = draft(drafter, [context] * n, [7] * n, WARM, draws)
    target_ids = torch.arange(V) if drafter.d2t is None else drafter.d2t
    counts = torch.bincount(block.draft_ids_RK[:, 0], minlength=V)
    share = torch.zeros(V)
    share[target_ids] = block.draft_probs_RKV[0, 0]
    assert (counts - n * share).abs().max() <= 1.001
    assert (counts > 1).sum() > 5
    assert set(block.draft_ids_RK.flatten().tolist()) <= set(target_ids.tolist())


def test_ids_go_to_the_target_and_back() -> None:
    drafter = built(KINDS["reduced"])
    draft_ids = torch.arange(len(drafter.d2t))
    target_ids = drafter.to_target_ids(draft_ids)
    assert torch.equal(target_ids, drafter.d2t)
    assert torch.equal(drafter.to_draft_ids(target_ids), draft_ids)
    outside = sorted(set(range(V)) - set(target_ids.tolist()))
    assert (drafter.to_draft_ids(torch.tensor(outside)) == -1).all()
    assert drafter.markov_head.markov_w1.weight.shape == (V, R)
    assert drafter.markov_head.markov_w2.weight.shape == (len(draft_ids), R)


# ---- bound to a target --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = tmp_path_factory.mktemp("gemma") / "t"
    return load_target(tiny_target_folder(folder, "gemma3", softcap=2.0), "float32")


def bound(target: Target, **fields: Any) -> Any:
    config = fit_to_target(replace(CONFIG, **fields), target.spec)
    shared = SharedWeights(target.embedding_weight, target.head_weight)
    drafter = built(config, shared)
    return drafter.bind(target)


def test_embedding_scale_and_softcap_carry_over(gemma: Target) -> None:
    drafter = bound(gemma)
    ids, states = torch.tensor([5, 9, MASK_ID]), 3 * normal(4, gemma.spec.hidden_size)
    near(drafter.shared.embed(ids), gemma.embed(ids))
    near(drafter.shared.logits(states), gemma.logits(states))
    assert drafter.shared.logits(states).abs().max() <= 2.0
    scaled = gemma.embedding_weight * gemma.spec.hidden_size**0.5
    context = normal(11, TAPS * gemma.spec.hidden_size, seed=1)
    block, hidden = draft(drafter, [context], [7], WARM, np.full((1, K), 0.5))
    drafter.bind_weights(SharedWeights(scaled, gemma.head_weight))
    near(draft(drafter, [context], [7])[1], hidden)
    previous = torch.tensor([[7, *block.draft_ids_RK[0, :-1].tolist()]])
    bias = drafter.markov_head.bias(drafter.markov_head.previous(previous))
    logits = 2.0 * torch.tanh(hidden @ gemma.head_weight.T / 2.0) + bias  # U is capped, B is not
    near(block.draft_probs_RKV, logits.softmax(-1).detach())


@pytest.mark.parametrize("reduced", [False, True])
def test_loss_is_that_of_the_distributions_drafted_from(gemma: Target, reduced: bool) -> None:
    """The training loss measured on blocks equals one computed from inference's own outputs."""
    drafter = bound(gemma, draft_vocab_size=50 if reduced else None)
    if reduced:
        drafter.d2t.copy_(torch.arange(8, 158, 3))
        drafter.bind(gemma)
    ids = torch.randint(5, 158, (20,), generator=torch.Generator().manual_seed(0))
    last, taps = gemma.states([ids.tolist()], drafter.config.target_layer_ids)
    anchor = 9
    labels = ids[anchor + 1 : anchor + 1 + K][None]
    states = last[anchor : anchor + K]
    batch = AnchorBatch(
        lengths=[len(ids)],
        taps_TM=taps,
        anchors=[torch.tensor([anchor])],
        anchor_ids_A=ids[anchor : anchor + 1],
        labels_AK=labels,
        label_valid_AK=torch.ones(1, K, dtype=torch.bool),
        last_ND=states,
        log_norm_N=gemma.logits(states).logsumexp(-1),
        draws_AK=torch.full((1, K), 0.5, dtype=torch.float64),
    )
    loss = drafter.loss(batch, LossWeights(ce=0.3, tv=0.7, bce=0.0, decay=1e9))

    _, hidden = draft(drafter, [taps[:anchor]], [int(ids[anchor])])
    previous = ids[anchor : anchor + K][None]
    bias = drafter.markov_head.bias(drafter.markov_head.previous(previous))
    p_d = torch.zeros(K, 160)
    columns = torch.arange(160) if drafter.d2t is None else drafter.d2t
    p_d[:, columns] = (drafter.shared.logits(hidden) + bias).softmax(-1)[0].detach()
    p_t = gemma.logits(states).softmax(-1)
    tv = (p_d - p_t).abs().sum(-1)
    own = p_d.gather(1, labels.T)[:, 0]
    inside = own > 0
    ce = torch.where(inside, -own.clamp(min=1e-30).log(), 0.0)
    assert (int(inside.sum()) < K) is reduced
    near(loss.total.detach(), (0.3 * ce + 0.7 * tv).mean())
    near(loss.overlap_AK[0], 1 - tv / 2)


def test_taps_are_spread_over_the_layers_but_the_last() -> None:
    assert default_tap_ids(36) == (1, 9, 17, 25, 33)
    assert default_tap_ids(30) == (1, 8, 14, 21, 27)
    for layers in range(2, 80):
        taps = default_tap_ids(layers)
        assert list(taps) == sorted(set(taps))
        assert taps[0] >= 0
        assert taps[-1] < layers - 1


@pytest.mark.parametrize("kind", ["rnn", *NEW_HEADS, "few-refined"])
def test_gradients_reach_every_weight(kind: str) -> None:
    """And the target's own weights get none."""
    drafter = built(KINDS[kind])
    n = len(STORY.places) * K
    batch = AnchorBatch(
        lengths=STORY.lengths,
        taps_TM=STORY.taps,
        anchors=STORY.anchors,
        anchor_ids_A=STORY.anchor_ids,
        labels_AK=STORY.labels,
        label_valid_AK=torch.ones(len(STORY.places), K, dtype=torch.bool),
        last_ND=normal(n, D, seed=5),
        log_norm_N=(normal(n, D, seed=5) @ drafter.shared.head.T).logsumexp(-1),
        draws_AK=torch.rand(len(STORY.places), K, dtype=torch.float64),
    )
    weights = LossWeights(0.1, 0.9, 1.0, 4.0, base=0.6, free=0.3)
    drafter.loss(batch, weights).total.backward()
    idle = [k for k, p in drafter.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert not drafter.shared.head.requires_grad
    assert isinstance(drafter, DSparkDrafter)


def test_an_unpacked_float32_drafter_serves_a_bfloat16_target(tmp_path: Any) -> None:
    """Drafting in the middle of training: master weights in float32, the target's taps not."""
    folder = tiny_target_folder(tmp_path, vocab_size=V + 60, hidden=D)
    target = load_target(folder, "bfloat16")
    config = fit_to_target(replace(CONFIG, target_layer_ids=(1, 3, 5)), target.spec)
    drafter = make_drafter(config).eval()
    drafter.bind(target)
    cache = drafter.new_cache(1, 16)
    last, taps = target.states([[5, 6, 7, 8]], config.target_layer_ids)
    nothing = torch.zeros(0, dtype=torch.long)
    drafter.extend(cache, taps[:0], nothing, nothing, nothing)
    drafter.extend(cache, taps[:3], torch.zeros(3).long(), torch.arange(3), torch.arange(3))
    block = drafter.draft(cache, [8], [3], [0], [GREEDY], None)
    assert block.draft_ids_RK.shape == (1, K)
    assert last.dtype == torch.bfloat16


def test_a_head_with_a_bias_is_refused(tmp_path: Any) -> None:
    target = load_target(tiny_target_folder(tmp_path, vocab_size=V + 60, hidden=D), "float32")
    target.head_bias = torch.ones(target.spec.vocab_size)
    drafter = make_drafter(fit_to_target(CONFIG, target.spec))
    with pytest.raises(IncompatibleDrafterError, match="bias"):
        drafter.bind(target)
