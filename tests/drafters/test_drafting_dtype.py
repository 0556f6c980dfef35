"""Drafting in another type than the target's: guesses may be rough, texts may not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dspark import native
from dspark.core import SamplingParams
from dspark.drafters.checkpoint import drafting_dtype, load_drafter, save_drafter
from dspark.engine import stats
from dspark.engine.engine import Engine
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder
from scripted import answer, random_drafter, texts, whole_blocks

PROMPTS = [[1, 20, 30], [9], list(range(40, 65)), [50, 51] * 6]
KINDS = ["dspark", "dflash", "eagle3", "mtp"]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(tiny_target_folder(tmp_path_factory.mktemp("target")), "float32")


@pytest.mark.parametrize(
    ("dtype", "kernels", "expected"),
    [
        ("float32", True, torch.bfloat16),
        ("float32", False, torch.float32),
        ("bfloat16", True, torch.bfloat16),
        ("float16", True, torch.float16),
    ],
)
def test_lighter_only_where_it_is_fast_and_exact(
    dtype: str,
    kernels: bool,
    expected: torch.dtype,
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_target(target.name, dtype)
    monkeypatch.setattr(native, "kernels", lambda: object() if kernels else None)
    assert drafting_dtype(model) is expected


@pytest.mark.parametrize("vocabulary", [None, range(0, 160, 2)], ids=["whole", "half"])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_the_target_s(
    kind: str, vocabulary: range | None, target: Target, tmp_path: Path
) -> None:
    own = random_drafter(target, 4, kind=kind, vocabulary=vocabulary)
    save_drafter(own, tmp_path / "drafter")
    drafter = load_drafter(tmp_path / "drafter", target, dtype=torch.bfloat16)
    assert (
        {p.dtype for p in drafter.parameters()} == {drafter.shared.head.dtype} == {torch.bfloat16}
    )
    assert target.head_weight.dtype is torch.float32
    greedy = SamplingParams(max_new_tokens=30)
    requests = Engine(target, drafter, whole_blocks(drafter), slots=3).generate(PROMPTS, greedy)
    assert texts(requests) == answer(target, None, PROMPTS, greedy)
    assert stats.verified_tokens(requests) > 0


@pytest.mark.skipif(native.kernels() is None, reason="needs the compiled kernels")
@pytest.mark.parametrize("kind", KINDS)
def test_seeded_texts_do_not_depend_on_company(kind: str, target: Target, tmp_path: Path) -> None:
    save_drafter(random_drafter(target, 4, kind=kind), tmp_path / "drafter")
    drafter = load_drafter(tmp_path / "drafter", target, dtype=torch.bfloat16)
    drawn = SamplingParams(temperature=1.0, max_new_tokens=30, seed=5)
    together = answer(target, drafter, PROMPTS, drawn, slots=4)
    assert together == [answer(target, drafter, [p], drawn, slots=1)[0] for p in PROMPTS]
