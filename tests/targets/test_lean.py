"""The lean forward and the fallback against the Hugging Face module, whole and in pieces."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dspark.attention.kv_cache import KVCache, Rows
from dspark.attention.ragged import CachedAttention, PackedAttention
from dspark.errors import CheckpointError
from dspark.targets.family import TargetSpec, spec_from_config
from dspark.targets.hf_target import HFTarget
from dspark.targets.target import LeanTarget, Target, load_target
from fakes import STOP_ID, tiny_target_folder

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
}
HALF_SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

# name: (family, arguments of the tiny target, fields of its config changed afterwards)
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {"layers": 4}, {}),
    "llama-untied": ("llama", {"layers": 4, "tie": False}, {}),
    "llama-biases": ("llama", {"layers": 4}, {"attention_bias": True, "mlp_bias": True}),
    "llama-3-rope": ("llama", {"layers": 4}, {"rope_parameters": LLAMA3_ROPE}),
    "llama-one-kv-head": ("llama", {"layers": 4, "kv_heads": 1}, {}),
    "qwen3": ("qwen3", {"layers": 4}, {}),
    "qwen3-untied": ("qwen3", {"layers": 4, "tie": False, "kv_heads": 4}, {}),
    "qwen3-sliding": (
        "qwen3",
        {"layers": 4},
        {"layer_types": HALF_SLIDING, "sliding_window": 5, "use_sliding_window": True},
    ),
    "gemma3": ("gemma3", {}, {}),
    "gemma3-untied": ("gemma3", {"tie": False, "sliding_window": 3}, {}),
    "gemma3-softcap": ("gemma3", {"softcap": 4.0}, {}),
    "gemma3-rope": ("gemma3", {}, {"rope_parameters": GEMMA_ROPE, "query_pre_attn_scalar": 48}),
}

FOREIGN: dict[str, dict[str, Any]] = {
    "Qwen2Config": {},
    "GPTNeoXConfig": {},
    "Gemma2Config": {"sliding_window": 6, "final_logit_softcapping": 5.0},
    "GraniteConfig": {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "CohereConfig": {"logit_scale": 0.25},
    "PhiConfig": {},  # its head has a bias
}


def built(folder: Path, variant: str) -> Any:
    family, made, changes = VARIANTS[variant]
    tiny_target_folder(folder, family, **made)
    config = AutoConfig.from_pretrained(folder)
    for field, value in changes.items():
        setattr(config, field, value)
    module = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.3)
    return module.eval()


def foreign_module(name: str) -> Any:
    shape = {
        "vocab_size": 120,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": STOP_ID,
    }
    config = getattr(transformers, name)(**shape | FOREIGN[name])
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(std=0.2)
    return module


def wrap(kind: Any, module: Any) -> Any:
    return kind("tiny", spec_from_config(module.config), None, frozenset([STOP_ID]), module)


def texts(spec: TargetSpec, lengths: Sequence[int], seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, spec.vocab_size, (sum(lengths),), generator=generator)
    return [part.tolist() for part in ids.split(list(lengths))]


def all_taps(spec: TargetSpec) -> list[int]:
    """Every layer that may be tapped, out of order: the order asked for is the order given."""
    return [*range(1, spec.num_layers - 1), 0]


def near(found: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


@pytest.fixture(scope="module", params=list(VARIANTS))
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built(tmp_path_factory.mktemp("target"), request.param)


@pytest.fixture(scope="module")
def lean(module: Any) -> LeanTarget:
    return wrap(LeanTarget, module)


@torch.no_grad()
def check_whole(target: Target, module: Any) -> None:
    """States, taps, logits and embeddings of whole sequences are those of the module."""
    sequences, taps = texts(target.spec, [30, 1, 13]), all_taps(target.spec)
    last, tapped = target.states(sequences, taps)
    rows = 0
    for ids in sequences:
        own = slice(rows, rows := rows + len(ids))
        tensor = torch.tensor([ids])
        out = module(tensor, output_hidden_states=True)
        near(last[own], out.hidden_states[-1][0])
        near(tapped[own], torch.cat([out.hidden_states[i + 1][0] for i in taps], -1))
        near(target.logits(last[own]), out.logits[0])
        near(target.embed(tensor), module.get_input_embeddings()(tensor))
    assert rows == len(last)


def replay(target: Target, sequences: list[list[int]], slots: list[int], seed: int) -> Any:
    """Feed sequences as an engine does: in pieces, in changing company and order, each piece with
    rows of a rejected draft behind it that the next piece writes over."""
    dice, taps = random.Random(seed), all_taps(target.spec)
    cache = target.new_cache(max(slots) + 1, max(map(len, sequences)) + 8)
    done, kept = [0] * len(sequences), [[] for _ in sequences]
    while any(at < len(s) for at, s in zip(done, sequences, strict=True)):
        waiting = [r for r, s in enumerate(sequences) if done[r] < len(s)]
        batch = dice.sample(waiting, dice.randint(1, len(waiting)))
        pieces = [sequences[r][done[r] : done[r] + dice.choice([1, 2, 2, 9])] for r in batch]
        rejected = [[dice.randrange(3, 100) for _ in range(dice.choice([0, 0, 3]))] for _ in batch]
        rows = Rows.build(
            [
                (slots[r], done[r], good + bad)
                for r, good, bad in zip(batch, pieces, rejected, strict=True)
            ]
        )
        last, tapped = target.forward(rows, cache, taps)
        start = 0
        for r, good, bad in zip(batch, pieces, rejected, strict=True):
            kept[r].append(torch.cat([last, tapped], -1)[start : start + len(good)])
            start += len(good) + len(bad)
            done[r] += len(good)
    return torch.cat([row for rows in kept for row in rows])


def check_cached(target: Target) -> None:
    sequences = texts(target.spec, [26, 26, 7, 31, 1])
    expected = torch.cat(target.states(sequences, all_taps(target.spec)), -1)
    for seed, slots in enumerate([[4, 0, 7, 2, 9], [0, 1, 2, 3, 4], [3, 2, 1, 0, 8]]):
        near(replay(target, sequences, slots, seed), expected)


def test_lean_equals_the_module(lean: LeanTarget, module: Any) -> None:
    assert lean.spec.is_lean
    check_whole(lean, module)


def test_lean_in_pieces_equals_one_pass(lean: LeanTarget) -> None:
    check_cached(lean)


def test_fallback_equals_lean(lean: LeanTarget, module: Any) -> None:
    fallback = wrap(HFTarget, module)
    sequences, taps = texts(lean.spec, [24, 5]), all_taps(lean.spec)
    for mine, theirs in zip(
        lean.states(sequences, taps), fallback.states(sequences, taps), strict=True
    ):
        near(mine, theirs)
    near(replay(lean, sequences, [3, 1], 5), replay(fallback, sequences, [3, 1], 5))
    last = lean.states(sequences, taps)[0]
    near(lean.logits(last), fallback.logits(last))
    near(lean.embed(torch.tensor([3, 9])), fallback.embed(torch.tensor([3, 9])))
    assert torch.equal(lean.head_weight, fallback.head_weight)
    assert torch.equal(lean.embedding_weight, fallback.embedding_weight)


def test_variants_are_what_they_claim(lean: LeanTarget, module: Any) -> None:
    """A variant that changed nothing would make the comparisons above idle."""
    config, windows = module.config, lean.spec.layer_windows
    assert (module.lm_head.weight is module.model.embed_tokens.weight) is config.tie_word_embeddings
    if "sliding_attention" in lean.spec.layer_types:
        assert {None} < set(windows)
        assert all(w is None or w < 13 for w in windows)
    plain = PackedAttention([1], (None,) * len(windows), 1.0).windows
    assert (windows == plain) is ("sliding_attention" not in lean.spec.layer_types)


def test_no_taps(lean: LeanTarget) -> None:
    cache = lean.new_cache(1, 8)
    assert lean.forward(Rows.build([(0, 0, [5, 6])]), cache)[1] is None


@pytest.mark.parametrize("variant", ["llama", "qwen3", "gemma3"])
def test_bfloat16_is_no_further_off_than_the_module(tmp_path: Path, variant: str) -> None:
    exact = built(tmp_path / "t", variant)
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    target = wrap(LeanTarget, rounded)
    [ids] = texts(target.spec, [32])

    def off(found: Tensor, expected: Tensor) -> float:
        return float((found.float() - expected).norm() / expected.norm())

    with torch.no_grad():
        reference = exact(torch.tensor([ids])).logits[0]
        theirs = off(rounded(torch.tensor([ids])).logits[0], reference)
        last, _ = target.states([ids], [1])
        cached, _ = target.forward(Rows.build([(0, 0, ids)]), target.new_cache(1, 40))
    assert last.dtype == torch.bfloat16
    assert off(target.logits(last), reference) < 1.5 * theirs + 0.005
    assert off(target.logits(cached), reference) < 1.5 * theirs + 0.005
    assert theirs < 0.1


# ---- architectures without a lean forward -------------------------------------------------------


@pytest.mark.parametrize("name", list(FOREIGN))
def test_fallback_equals_a_foreign_module(name: str) -> None:
    module = foreign_module(name)
    target = wrap(HFTarget, module)
    assert not target.spec.is_lean
    check_whole(target, module)
    check_cached(target)
    head = torch.nn.functional.linear(torch.eye(target.spec.hidden_size), target.head_weight)
    if target.spec.logit_softcap is None:
        bias = target.logits(torch.zeros(1, target.spec.hidden_size))
        near(head, target.logits(torch.eye(target.spec.hidden_size)) - bias)


def test_a_slot_is_free_for_another_request() -> None:
    target = wrap(HFTarget, foreign_module("Qwen2Config"))
    first, second = texts(target.spec, [20, 6])
    cache = target.new_cache(2, 32)
    target.forward(Rows.build([(1, 0, first)]), cache)
    last, _ = target.forward(Rows.build([(1, 0, second)]), cache)
    near(last, target.states([second], [1])[0])


def test_unknown_logits_are_refused() -> None:
    module = foreign_module("Qwen2Config")
    spec = spec_from_config(module.config)
    module.lm_head.register_forward_hook(lambda _, __, logits: logits * 3)
    with pytest.raises(CheckpointError, match="makes its logits in a way") as caught:
        HFTarget("tiny", spec, None, frozenset(), module)
    assert "qwen2" in str(caught.value)


def test_an_unknown_activation_is_not_run_lean(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_target_folder(tmp_path / "t", layers=2))
    assert spec_from_config(config).is_lean
    config.hidden_act = "relu"
    assert not spec_from_config(config).is_lean


@pytest.mark.parametrize(("family", "kind"), [("llama", LeanTarget), ("qwen2", HFTarget)])
def test_load_target_picks_the_forward(tmp_path: Path, family: str, kind: type) -> None:
    folder = tiny_target_folder(tmp_path / "t", layers=2)
    if family == "qwen2":
        foreign_module("Qwen2Config").save_pretrained(folder)
    target = load_target(folder, "float32")
    assert type(target) is kind
    assert target.stop_ids == {STOP_ID}
    assert len(target.states([[5, 6, 7]], [0])[0]) == 3


def test_text_decoder_of_a_model_with_pictures(tmp_path: Path) -> None:
    folder = tiny_target_folder(tmp_path / "t", "gemma3", softcap=6.0)
    plain = load_target(folder, "float32")
    text = transformers.Gemma3TextConfig.from_pretrained(folder)
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    eyes |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text.to_dict(), vision_config=eyes)
    seeing = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    seeing.model.language_model.load_state_dict(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).model.state_dict()
    )
    seeing.save_pretrained(folder)
    target = load_target(folder, "float32")
    assert isinstance(target, LeanTarget)
    [ids] = texts(target.spec, [20])
    near(target.logits(target.states([ids], [1])[0]), plain.logits(plain.states([ids], [1])[0]))


# ---- attention over the cache -------------------------------------------------------------------

HEADS, KV_HEADS, SIZE, MAX_LEN = 4, 2, 8, 64

REQUESTS = st.lists(
    st.tuples(st.integers(0, 55), st.sampled_from([1, 1, 1, 2, 6])), min_size=1, max_size=9
)


def by_hand(q: Tensor, k: Tensor, v: Tensor, first: int, window: int | None, both: bool) -> Tensor:
    """One request, one row and one head at a time."""
    rows = []
    for n in range(len(q)):
        stop = len(k) if both else first + n + 1
        start = 0 if window is None else max(0, first + n + 1 - window)
        heads = []
        for h in range(HEADS):
            kv = h // (HEADS // KV_HEADS)
            scores = (k[start:stop, kv] @ q[n, h]) * 0.3
            heads.append(scores.softmax(0) @ v[start:stop, kv])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


@settings(max_examples=60)
@given(
    requests=REQUESTS,
    places=st.permutations(range(11)),
    order=st.randoms(use_true_random=False),
    window=st.sampled_from([None, None, 3, 17]),
    both=st.booleans(),
)
def test_cached_attention_ignores_order_and_place(
    requests: list[tuple[int, int]],
    places: list[int],
    order: random.Random,
    window: int | None,
    both: bool,
) -> None:
    """Each request gets what it would get alone, wherever it lies and whoever runs beside it."""
    window = None if both else window
    cache = KVCache(1, 11, MAX_LEN, KV_HEADS, SIZE, torch.float32)
    cache.keys[0].fill_(50.0)  # what a former request may have left
    cache.values[0].fill_(50.0)
    placed = list(zip(sorted(places[: len(requests)]), requests, strict=True))
    if order.random() < 0.5:  # neighbouring slots in order are what the engine mostly makes
        order.shuffle(placed)
    expected, new, spans = [], [], []
    for slot, (first, n) in placed:
        q = torch.randn(n, HEADS, SIZE)
        k, v = torch.randn(2, first + n, KV_HEADS, SIZE)
        before = cache.places(torch.full((first,), slot), torch.arange(first))
        cache.write(0, before, k[:first], v[:first])
        new.append((q, k[first:], v[first:]))
        spans.append((slot, first, [0] * n))
        expected.append(by_hand(q, k, v, first, window, both))
    attend = CachedAttention(cache, Rows.build(spans), (window,), 0.3, both)
    found = attend(0, *(torch.cat(x) for x in zip(*new, strict=True)))
    near(found, torch.cat(expected), atol=1e-5)
    assert [row for p in attend.parts for row in range(p.rows.start, p.rows.stop)] == list(
        range(len(found))
    )


def test_equal_neighbours_share_a_call() -> None:
    """The split is there for speed: 8 alike requests are one attention call, not 8."""
    cache = KVCache(1, 8, MAX_LEN, KV_HEADS, SIZE, torch.float32)
    alike = Rows.build([(slot, 20 + slot, [0, 0]) for slot in range(8)])
    assert len(CachedAttention(cache, alike, (None,), 1.0).parts) == 1
    uneven = Rows.build([(slot, 20, [0] * (1 + slot % 2)) for slot in range(8)])
    assert len(CachedAttention(cache, uneven, (None,), 1.0).parts) == 8
