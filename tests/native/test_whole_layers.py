"""Whole layers in one call against the same layers by single operations, and without kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dspark import native
from dspark.attention.kv_cache import Rows
from dspark.core import SamplingParams
from dspark.engine.engine import Engine
from dspark.targets.layers import pack_linears
from dspark.targets.target import LeanTarget, load_target
from fakes import tiny_target_folder
from scripted import random_drafter

pytestmark = pytest.mark.usefixtures("level")

SIZES = {"hidden": 96, "heads": 6, "kv_heads": 2}  # heads of 16 numbers


def target(path: Path, family: str, dtype: str = "float32") -> LeanTarget:
    found = load_target(tiny_target_folder(path / family, family, **SIZES), dtype)
    assert isinstance(found, LeanTarget)
    return found


def outputs(model: LeanTarget) -> list[torch.Tensor]:
    """States, taps and logits of an uneven batch in two forwards."""
    cache = model.new_cache(3, 40)
    results = []
    for rows in (
        Rows.build([(0, 0, [5, 6, 7, 8]), (2, 0, [9, 10])]),
        Rows.build([(0, 4, [11]), (2, 2, [12, 13, 14])]),
    ):
        last, taps = model.forward(rows, cache, (0, 1))
        assert taps is not None
        results += [last, taps, model.logits(last)]
    return results


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_stack_is_its_layers_one_by_one(tmp_path: Path, family: str) -> None:
    model = target(tmp_path, family)
    assert model.model.stack is not None
    whole = outputs(model)
    model.model.stack = None
    for one, other in zip(whole, outputs(model), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_without_kernels_the_numbers_are_the_same(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernels = outputs(target(tmp_path, family))
    monkeypatch.setenv("DSPARK_KERNELS", native.TORCH)
    bare = target(tmp_path, family)
    assert bare.model.stack is None
    for one, other in zip(with_kernels, outputs(bare), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


def test_layers_with_windows_of_several_sizes_go_one_by_one(tmp_path: Path) -> None:
    assert target(tmp_path, "gemma3").model.stack is None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bfloat16_texts_do_not_depend_on_company_or_drafts(
    tmp_path: Path, temperature: float
) -> None:
    """Rows do not depend on each other, so rounding is the same in any batch."""
    model = target(tmp_path, "llama", "bfloat16")
    drafter = random_drafter(model, block_size=4).to(torch.bfloat16)
    pack_linears(drafter)
    prompts = [[5 + i, 9, 20 + 3 * i, 7][: 2 + i % 3] for i in range(8)]
    params = [
        SamplingParams(temperature=temperature, max_new_tokens=24, seed=40 + i) for i in range(8)
    ]

    def texts(policy: str, together: int) -> list[list[int]]:
        engine = Engine(model, drafter, policy, slots=together, max_len=64)
        requests = [engine.submit(p, q) for p, q in zip(prompts, params, strict=True)]
        while any(request.finish is None for request in requests):
            engine.step()
        return [request.output_ids for request in requests]

    alone = texts("fixed:4", 1)
    assert texts("fixed:4", 8) == alone
    assert texts("fixed:4", 3) == alone
    if temperature == 0.0:
        assert texts("off", 1) == alone
        assert texts("off", 8) == alone
