"""Prompts in parts and texts that lose their place in the caches: the answers stay the same."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

from dspark.attention.kv_cache import KVCache
from dspark.core import SamplingParams
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.errors import ConfigError, RequestError
from dspark.native import ops
from dspark.targets.hf_loading import load_module
from dspark.targets.hf_target import HFTarget
from dspark.targets.layers import PackedLinear
from dspark.targets.target import Target, load_target
from scripted import ScriptedDrafter, answer, random_drafter, texts, whole_blocks

PROMPTS = [list(range(40, 65)), [1, 20, 30], [50, 51] * 6, [7, 8, 9, 10, 11], [9]]
GREEDY = SamplingParams(max_new_tokens=24)
SEEDED = SamplingParams(temperature=1.0, max_new_tokens=24, seed=5)


def squeezed(engine: Engine, cache_len: int, params: SamplingParams) -> list[list[int]]:
    """Answers of an engine whose caches hold so many positions."""
    engine.queue.cache_len = cache_len
    said = texts(engine.generate(PROMPTS, params))
    assert engine.queue.preemptions, "otherwise nothing is tested"
    assert not engine.queue
    return said


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("kind", ["dspark", "dflash", "eagle3", "mtp", "none"])
def test_prompts_in_parts_and_lost_places(
    kind: str, params: SamplingParams, target: Target
) -> None:
    drafter = None if kind == "none" else random_drafter(target, 4, kind=kind)
    whole = answer(target, drafter, PROMPTS, params, slots=5)
    assert answer(target, drafter, PROMPTS, params, slots=5, prefill_rows=7) == whole
    small = Engine(target, drafter, whole_blocks(drafter), slots=5, max_len=60, prefill_rows=5)
    assert squeezed(small, 70, params) == whole


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_other_families(family: str, targets: dict[str, Target]) -> None:
    target = targets[family]
    drafter = random_drafter(target)
    whole = answer(target, None, PROMPTS, GREEDY, slots=5)
    small = Engine(target, drafter, whole_blocks(drafter), slots=5, max_len=60, prefill_rows=5)
    assert squeezed(small, 70, GREEDY) == whole


def test_the_fallback_target(folders: Any) -> None:
    module, tokenizer = load_module(folders["llama"], "float32")
    lean = load_target(folders["llama"], "float32")
    target = HFTarget("fallback", lean.spec, tokenizer, lean.stop_ids, module)
    whole = answer(target, None, PROMPTS, GREEDY, slots=5)
    small = Engine(target, random_drafter(target), "fixed:5", slots=5, max_len=60, prefill_rows=5)
    assert squeezed(small, 70, GREEDY) == whole


def test_drafters_are_given_each_position_once_and_the_token_after_it(target: Target) -> None:
    """`ScriptedDrafter` checks its context at every draft."""
    drafter = ScriptedDrafter(target, lambda slot, position: [3, 4, 5])
    small = Engine(target, drafter, whole_blocks(drafter), slots=5, max_len=60, prefill_rows=5)
    squeezed(small, 70, GREEDY)


def test_a_cache_gives_the_memory_of_a_slot_back() -> None:
    cache = KVCache(2, slots=3, max_len=64, kv_heads=2, head_dim=32, dtype=torch.float32)
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(1.0)
    cache.forget(1)
    for tensor in (*cache.keys, *cache.values):
        sums = tensor.view(3, -1).sum(1)
        assert sums.tolist() == [4096.0, 0.0, 4096.0]


def test_kernels_of_many_sizes_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of rows has a kernel of its own; 900 without a limit hold about 400 MiB."""
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(ops, "kernels", lambda: None)
    linear = PackedLinear(torch.ones(32, 32))
    if not linear.reordered:
        pytest.skip("products are not oneDNN's here")
    sizes = iter(range(1, 1000))
    filled = []
    for count in (300, 600):
        for rows in islice(sizes, count):
            linear(torch.ones(rows, 32))
        filled.append(psutil.Process().memory_info().rss)
    assert filled[1] - filled[0] < 64 * 2**20


def test_a_budget_in_gib(target: Target, drafter: Drafter) -> None:
    engine = Engine(target, drafter, whole_blocks(drafter), slots=4, max_len=200)
    cost = engine.runner.position_bytes
    assert engine.queue.cache_len == 800
    whole = texts(engine.generate(PROMPTS, GREEDY))
    small = Engine(
        target, drafter, whole_blocks(drafter), slots=4, max_len=200, cache_gib=100 * cost / 2**30
    )
    assert (small.queue.cache_len, small.max_len) == (100, 100)
    assert texts(small.generate(PROMPTS, GREEDY)) == whole
    with pytest.raises(RequestError, match="no room"):
        small.submit([5] * 100)
    with pytest.raises(ConfigError, match="cache is too small"):
        Engine(target, drafter, whole_blocks(drafter), cache_gib=63 * cost / 2**30)
    with pytest.raises(ConfigError, match="too small"):
        Engine(target, drafter, whole_blocks(drafter), prefill_rows=0)
