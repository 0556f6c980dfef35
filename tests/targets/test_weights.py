"""Weights of eight bits: near the full ones, drafted for without loss, refused where not served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark import native
from dspark.core import SamplingParams
from dspark.drafters.checkpoint import drafting_dtype, load_drafter, save_drafter
from dspark.engine import stats
from dspark.engine.engine import Engine
from dspark.engine.tables import cost_key, default_path
from dspark.errors import ConfigError
from dspark.targets import choice
from dspark.targets.family import TargetSpec
from dspark.targets.target import LeanTarget, load_target
from dspark.targets.weights import check_weights
from fakes import FAMILIES, tiny_target_folder
from scripted import answer, random_drafter, texts, whole_blocks

needs_kernels = pytest.mark.skipif(native.usable() == (native.TORCH,), reason="no kernels here")
PROMPTS = [[1, 20, 30], [9], list(range(40, 65)), [50, 51] * 6]
GREEDY = SamplingParams(max_new_tokens=30)
LEAN = TargetSpec("llama", 512, 8, 8, 4, 64, 1024, 4096, 1e-6, 512)
SIZES = {"hidden": 96, "heads": 6, "kv_heads": 2}  # heads of 16 numbers, so whole layers run


def pair(folder: Path, dtype: str) -> tuple[LeanTarget, LeanTarget]:
    """The same target with its own weights and with eight bits."""
    full, small = load_target(folder, dtype), load_target(folder, dtype, weights="int8")
    assert isinstance(full, LeanTarget)
    assert isinstance(small, LeanTarget)
    return full, small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_target_folder(tmp_path_factory.mktemp("target"), **SIZES)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_near_the_full_ones(family: str, dtype: str, tmp_path: Path) -> None:
    full, small = pair(tiny_target_folder(tmp_path, family, **SIZES), dtype)
    assert (full.precision, small.precision) == (dtype, f"{dtype}+int8")
    assert (full.weights, small.weights, small.dtype) == ("same", "int8", full.dtype)
    with torch.inference_mode():
        (a, _), (b, _) = (target.states(PROMPTS, ()) for target in (full, small))
        a, b = full.logits(a).float(), small.logits(b).float()
    assert 0 < (a - b).norm() < 0.1 * a.norm()
    assert small.weight_bytes < 0.6 * full.weight_bytes


@needs_kernels
def test_whole_layers_are_the_same_as_one_by_one(folder: Path) -> None:
    _, small = pair(folder, "bfloat16")
    assert small.model.stack is not None
    whole = answer(small, None, PROMPTS, GREEDY)
    small.model.stack = None
    assert answer(small, None, PROMPTS, GREEDY) == whole


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drafts_and_company_change_no_text(dtype: str, folder: Path, tmp_path: Path) -> None:
    full, small = pair(folder, dtype)
    save_drafter(random_drafter(full, 4), tmp_path / "drafter")
    drafter = load_drafter(tmp_path / "drafter", small, dtype=drafting_dtype(small))
    plain = answer(small, None, PROMPTS, GREEDY, slots=4)
    assert plain == [answer(small, None, [p], GREEDY, slots=1)[0] for p in PROMPTS]
    requests = Engine(small, drafter, whole_blocks(drafter), slots=3).generate(PROMPTS, GREEDY)
    assert texts(requests) == plain
    assert stats.verified_tokens(requests) > 0


@needs_kernels
def test_drafters_keep_weights_of_their_own_type(folder: Path, tmp_path: Path) -> None:
    full, small = pair(folder, "bfloat16")
    assert torch.equal(small.head_weight, full.head_weight)
    assert torch.equal(small.embedding_weight, full.embedding_weight)
    save_drafter(random_drafter(full, 4), tmp_path / "drafter")
    drafter = load_drafter(tmp_path / "drafter", small)
    assert drafter.shared.head.dtype is torch.bfloat16
    assert {p.dtype for p in drafter.parameters()} == {torch.bfloat16}
    products = [m.packed for m in drafter.modules() if getattr(m, "packed", None)]
    assert products
    assert all(product.data.dtype is torch.bfloat16 for product in products)


@needs_kernels
def test_costs_are_kept_apart(folder: Path) -> None:
    full, small = (cost_key(target, random_drafter(target)) for target in pair(folder, "float32"))
    assert (full.dtype, small.dtype) == ("float32", "float32+int8")
    assert default_path(full) != default_path(small)


@needs_kernels
def test_times_of_eight_bits_are_kept_apart(
    tmp_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DSPARK_KERNELS", raising=False)
    best = native.usable()[-1]
    wide = {f"{best} float32": (9.0,) * 3, "torch float32": (1.0,) * 3}
    small = {f"{best} float32": (5.0,) * 3, f"{best} bfloat16": (4.0,) * 3}
    monkeypatch.setattr(choice, "measure", lambda spec, eight_bits: small if eight_bits else wide)
    for _ in range(2):
        found = choice.choose(LEAN, weights="int8")
        assert (found.level, found.dtype) == (best, "bfloat16")
        assert choice.choose(LEAN).level == native.TORCH
    assert len(list((tmp_cache / "choice").iterdir())) == 2


@needs_kernels
def test_only_our_levels_are_timed_for_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "SAMPLE", 100_000)
    found = choice.measure(LEAN, eight_bits=True)
    ours = native.usable()[1:]
    assert set(found) == {f"{level} {dtype}" for level in ours for dtype in choice.DTYPES}


@pytest.mark.parametrize(
    ("weights", "spec", "dtype", "device", "match"),
    [
        ("int4", LEAN, "auto", "cpu", "Unknown weights.*int4.*same, int8"),
        ("int8", LEAN, "auto", "cuda", "device cuda.*--weights same"),
        ("int8", LEAN, "float16", "cpu", "dtype float16"),
        ("int8", replace(LEAN, model_type="gpt2"), "auto", "cpu", "gpt2.*Hugging Face module"),
        pytest.param(
            *("int8", replace(LEAN, intermediate_size=1026), "auto", "cpu", "1026 inputs"),
            marks=needs_kernels,
        ),
    ],
)
def test_refusals(weights: str, spec: TargetSpec, dtype: str, device: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        check_weights(weights, spec, dtype, device)
    assert "\n" not in str(error.value)


def test_refused_without_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPARK_KERNELS", native.TORCH)
    with pytest.raises(ConfigError, match="DSPARK_KERNELS=torch"):
        load_target(folder, weights="int8")
    monkeypatch.delenv("DSPARK_KERNELS")
    monkeypatch.setattr(native, "usable", lambda: (native.TORCH,))
    with pytest.raises(ConfigError, match="kernels: "):
        load_target(folder, weights="int8")
