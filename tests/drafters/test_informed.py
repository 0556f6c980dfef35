"""The informed confidence head: what it sees and must not see, and the file it lies in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dspark.core import DraftBlock, SamplingParams
from dspark.drafters.checkpoint import WEIGHTS, load_drafter, save_drafter
from dspark.drafters.dspark.informed import (
    FILE,
    InformedConfidence,
    _spread,
    load_informed,
    save_informed,
)
from dspark.errors import CheckpointError, IncompatibleDrafterError
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder
from scripted import random_drafter

K = 4
GREEDY = SamplingParams(temperature=0.0)
PLAIN = SamplingParams(temperature=4.0)  # so hot that draws decide
HEADS: dict[str, dict[str, Any]] = {
    "markov": {},
    "gated": {"markov_head_type": "gated"},
    "no markov": {"markov_rank": 0},
    "reduced": {"vocabulary": range(5, 45)},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(tiny_target_folder(tmp_path_factory.mktemp("target")), "float32")


@pytest.fixture(params=list(HEADS))
def drafter(request: pytest.FixtureRequest, target: Target) -> Any:
    made: Any = random_drafter(target, K, gain=4.0, **HEADS[request.param])
    made.keep_clues = True
    return made


def random_head(drafter: Any, seed: int = 0) -> InformedConfidence:
    generator = torch.Generator().manual_seed(seed)
    inner_HC = torch.randn(6, drafter.clue_count, generator=generator) * 0.1
    outer_H = torch.randn(6, generator=generator)
    return InformedConfidence(inner_HC, torch.zeros(6), outer_H, torch.tensor(0.2))


def draft(
    drafter: Any, params: list[SamplingParams], draws_RK: np.ndarray, steps: int | None = None
) -> DraftBlock:
    """Drafts behind contexts of three positions, the same for every request."""
    cache = drafter.new_cache(len(params), 16)
    width = drafter.backbone.fc.weight.shape[1]
    taps = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    for slot in range(len(params)):
        at = torch.arange(3)
        drafter.extend(cache, taps, torch.full_like(at, slot), at, None)
    many = range(len(params))
    return drafter.draft(cache, [7] * len(params), [3] * len(params), many, params, draws_RK, steps)


def draws(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def test_a_slot_never_sees_its_own_token(drafter: Any) -> None:
    """Two requests that differ in the draw of slot k alone: equal clues up to k, not behind it."""
    drafter.informed = random_head(drafter)
    for k in range(K):
        one, other = [0.5] * K, [0.5] * K
        one[k], other[k] = 0.01, 0.99
        block = draft(drafter, [PLAIN, PLAIN], draws(one, other))
        ids, clues = block.draft_ids_RK, block.clues_RKC
        assert ids[0, k] != ids[1, k]
        assert clues is not None
        assert block.confidence_RK is not None
        assert clues.shape == (2, K, drafter.clue_count)
        torch.testing.assert_close(clues[0, : k + 1], clues[1, : k + 1])
        torch.testing.assert_close(block.confidence_RK[0, : k + 1], block.confidence_RK[1, : k + 1])
        if k + 1 < K:  # else nothing above was tested
            assert not torch.allclose(clues[0, k + 1], clues[1, k + 1])
            assert not torch.allclose(block.confidence_RK[0, k + 1], block.confidence_RK[1, k + 1])


def test_it_speaks_for_drafts_above_temperature_0_alone(drafter: Any) -> None:
    some = draws([0.3, 0.6, 0.9, 0.2], [0.3, 0.6, 0.9, 0.2])
    linear = draft(drafter, [PLAIN, GREEDY], some)
    drafter.informed = random_head(drafter)
    block = draft(drafter, [PLAIN, GREEDY], some)
    assert block.clues_RKC is not None
    assert linear.confidence_RK is not None
    assert block.confidence_RK is not None
    assert torch.equal(block.draft_ids_RK, linear.draft_ids_RK)
    said = torch.sigmoid(drafter.informed.logits(block.clues_RKC))
    torch.testing.assert_close(block.confidence_RK[0], said[0])
    assert torch.equal(block.confidence_RK[1], linear.confidence_RK[1])
    assert not torch.allclose(block.confidence_RK[0], linear.confidence_RK[0])
    found = torch.sigmoid(drafter.linear_clue(block.clues_RKC))
    torch.testing.assert_close(found, linear.confidence_RK)
    alone = draft(drafter, [GREEDY], some[:1])  # a greedy batch has no distributions
    assert alone.clues_RKC is None


def test_company_and_shorter_drafts(drafter: Any) -> None:
    drafter.informed = random_head(drafter)
    some = draws([0.3, 0.6, 0.9, 0.2], [0.8, 0.1, 0.4, 0.5])
    both = draft(drafter, [PLAIN, PLAIN], some)
    alone = draft(drafter, [PLAIN], some[1:])
    assert both.confidence_RK is not None
    assert alone.confidence_RK is not None
    torch.testing.assert_close(both.confidence_RK[1], alone.confidence_RK[0])
    short = draft(drafter, [PLAIN], some[:1], steps=2)
    assert short.clues_RKC is not None
    assert short.clues_RKC.shape == (1, 2, drafter.clue_count)
    drafter.keep_clues, drafter.informed = False, None
    assert draft(drafter, [PLAIN], some[:1]).clues_RKC is None


@pytest.mark.parametrize("width", [40, 256, 1000])
def test_what_is_said_of_a_distribution(width: int) -> None:
    logits = torch.randn(3, 30, width, generator=torch.Generator().manual_seed(width)) * 2
    probs = logits.double().softmax(-1).float()
    best, squares = _spread(probs)
    ordered = probs.sort(-1, descending=True).values
    torch.testing.assert_close(squares[..., 0], probs.square().sum(-1))
    torch.testing.assert_close(best[..., 0], ordered[..., 0])
    assert bool((best[..., :40] <= ordered[..., :40] + 1e-7).all())
    if width <= 256:  # every token is a group of its own
        torch.testing.assert_close(best[..., :40], ordered[..., :40])


def test_the_file(target: Target, tmp_path: Path) -> None:
    made: Any = random_drafter(target, K)
    folder = save_drafter(made, tmp_path / "drafter")
    weights = folder / WEIGHTS
    assert load_informed(folder, weights, made.clue_count) is None
    head = random_head(made)
    path = save_informed(head, folder, weights, {"about": "a test"})
    back = load_informed(folder, weights, made.clue_count)
    assert back is not None
    assert len(back.sha256) == 64
    assert [p.name for p in folder.glob("*.safetensors")] == [WEIGHTS]  # other engines read all
    clues: Tensor = torch.randn(5, made.clue_count)
    torch.testing.assert_close(back.logits(clues), head.logits(clues))

    loaded: Any = load_drafter(folder, target)
    assert loaded.informed.sha256 == back.sha256
    unpacked: Any = load_drafter(folder, target, pack=False)
    assert unpacked.informed is None  # training has no use for it

    with pytest.raises(CheckpointError, match="does not fit its drafter"):
        load_informed(folder, weights, made.clue_count + 1)
    other = save_drafter(random_drafter(target, K, seed=9), tmp_path / "other")
    (other / FILE).write_bytes(path.read_bytes())
    with pytest.raises(IncompatibleDrafterError, match="fitted for another drafter"):
        load_drafter(other, target)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="Cannot read"):
        load_drafter(folder, target)


def test_a_file_of_another_version(target: Target, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    made: Any = random_drafter(target, K)
    folder = save_drafter(made, tmp_path / "drafter")
    save_file({"inner.weight": torch.zeros(1)}, folder / FILE, {"schema": "dspark.confidence/9"})
    with pytest.raises(CheckpointError, match=r"found: schema dspark\.confidence/9"):
        load_drafter(folder, target)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("outer.weight", torch.full((6,), float("nan")), "outer.weight holds no numbers.*0 of 6"),
        ("outer.bias", torch.tensor(float("inf")), "outer.bias holds no numbers"),
        ("inner.bias", torch.zeros(6, dtype=torch.int64), "inner.bias holds no numbers.*int64"),
        ("inner.bias", torch.tensor(1.0), "does not fit its drafter"),
        ("inner.bias", None, "does not fit its drafter"),
    ],
)
def test_a_file_without_numbers(
    target: Target, tmp_path: Path, name: str, tensor: Tensor | None, words: str
) -> None:
    from safetensors.torch import load_file, save_file

    made: Any = random_drafter(target, K)
    folder = save_drafter(made, tmp_path / "drafter")
    path = save_informed(random_head(made), folder, folder / WEIGHTS, {})
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, path, about)
    with pytest.raises(CheckpointError, match=words):
        load_drafter(folder, target)
