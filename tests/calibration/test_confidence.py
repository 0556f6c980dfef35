"""Fitting a confidence head: it finds what decides, and predicts the product."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dspark.calibration import confidence
from dspark.calibration.clues import ClueRounds
from dspark.drafters.dspark.informed import InformedConfidence
from dspark.errors import CheckpointError, DataError

K, C = 3, 12
DECISIVE = 5  # the clue that slot k's acceptance hangs on


class Linear:
    """Stands for a drafter whose linear head says nothing of use."""

    def linear_clue(self, clues: torch.Tensor) -> torch.Tensor:
        return clues[..., 0]


def conditional(clues_NKC: torch.Tensor) -> torch.Tensor:
    """What each slot passes with, given that those before it did."""
    return torch.sigmoid(2 * (clues_NKC[..., DECISIVE] - 3) / (DECISIVE + 1))


def made_up(count: int, seed: int) -> ClueRounds:
    """Rounds whose slots pass by one clue of theirs, whatever else is seen."""
    generator = torch.Generator().manual_seed(seed)
    clues_NKC = torch.randn(count, K, C, generator=generator) * torch.arange(1, C + 1) + 3
    c_NK = conditional(clues_NKC)
    passed_NK = torch.rand(count, K, generator=generator) < c_NK
    before_NK = torch.cat([torch.ones(count, 1), passed_NK.float().cumprod(1)[:, :-1]], 1)
    return ClueRounds(
        clues_NKC.half(),
        c_NK * before_NK,
        torch.ones(count, K, dtype=torch.bool),
        passed_NK.float().cumprod(1).sum(1).long(),
        [("p", count)],
    )


@pytest.fixture(scope="module")
def head() -> InformedConfidence:
    return confidence.fit(made_up(30_000, 0))


def test_it_finds_what_decides(head: InformedConfidence) -> None:
    drafter: Any = Linear()
    result = confidence.judge(head, drafter, made_up(3000, 1))
    assert (result["rounds"], result["prompts"]) == (3000, 1)
    assert result["auroc_linear_mean"] == pytest.approx(0.5, abs=0.05)
    assert result["auroc_mean"] > 0.8
    assert [row["k"] for row in result["positions"]] == [1, 2, 3]


def test_its_product_is_the_probability_of_the_prefix(head: InformedConfidence) -> None:
    clues_NKC = made_up(5000, 2).clues_NKC.float()
    found_NK = torch.sigmoid(head.logits(clues_NKC)).cumprod(1)
    true_NK = conditional(clues_NKC).cumprod(1)
    for k in range(K):
        error = (found_NK[:, k] - true_NK[:, k]).abs().mean()
        guess = (true_NK[:, k].mean() - true_NK[:, k]).abs().mean()
        assert float(error) < 0.3 * float(guess)


def test_the_same_seed_gives_the_same_head() -> None:
    rounds = made_up(600, 3)
    one, other, third = (confidence.fit(rounds, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.inner_HC, other.inner_HC)
    assert not torch.equal(one.inner_HC, third.inner_HC)


def test_the_loss_is_cross_entropy_of_the_product() -> None:
    logits = torch.randn(50, K, generator=torch.Generator().manual_seed(0)).double()
    goal = torch.rand(50, K, generator=torch.Generator().manual_seed(1)).double()
    known = torch.rand(50, K, generator=torch.Generator().manual_seed(2)) < 0.7
    survival = torch.sigmoid(logits).cumprod(1)
    plain = -(goal * survival.log() + (1 - goal) * (1 - survival).log())
    found = confidence.product_loss(logits, goal, known)
    torch.testing.assert_close(found, plain[known].mean())
    sure = torch.full((2, K), 60.0, requires_grad=True)  # a product of 1 has no log(1 - 1)
    confidence.product_loss(sure, torch.zeros(2, K), torch.ones(2, K, dtype=torch.bool)).backward()
    assert sure.grad is not None
    assert bool(sure.grad.isfinite().all())


def test_states_that_are_no_numbers() -> None:
    rounds = made_up(600, 0)
    rounds.clues_NKC[3, 1, 2] = float("inf")
    with pytest.raises(CheckpointError, match="not numbers"):
        confidence.fit(rounds)


def test_too_few_rounds() -> None:
    with pytest.raises(DataError, match=r"too few rounds .*100, at least"):
        confidence.fit(made_up(100, 0))
