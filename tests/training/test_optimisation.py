"""Optimisers cover every weight once; the learning rate follows its schedule."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from dspark.config import LossSection, OptimSection
from dspark.maths.losses import LossWeights
from dspark.training.optimisation import (
    MIN_WARMUP_STEPS,
    loss_weights_at,
    lr_share,
    make_optimisers,
)

LATE = 10**6  # a step at which the share of the run alone decides


class Model(nn.Module):
    matrix_modules = ("backbone.",)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))
        self.markov_head = nn.Embedding(9, 3)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_trainable_weight_is_in_one_optimiser(name: str) -> None:
    model = Model()
    optimisers = make_optimisers(cast(Any, model), OptimSection(name=name, weight_decay=0.1))
    held = [p for o in optimisers for g in o.param_groups for p in g["params"]]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(g["weight_decay"] == 0.1 for o in optimisers for g in o.param_groups)


def test_muon_takes_the_hidden_matrices_alone() -> None:
    model = Model()
    adamw, muon = make_optimisers(cast(Any, model), OptimSection(name="muon"))
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(muon, torch.optim.Muon)
    assert [p is model.backbone[0].weight for p in muon.param_groups[0]["params"]] == [True]
    (only,) = make_optimisers(cast(Any, model), OptimSection(name="adamw"))
    assert isinstance(only, torch.optim.AdamW)
    assert only.param_groups[0]["betas"] == (0.9, 0.95)


def test_without_matrices_muon_is_not_made() -> None:
    model = Model()
    model.matrix_modules = ("elsewhere.",)
    assert len(make_optimisers(cast(Any, model), OptimSection(name="muon"))) == 1


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule(schedule: str) -> None:
    config = OptimSection(schedule=schedule, warmup_share=0.1, final_lr_share=0.2)
    rising = [lr_share(i / 100, LATE, config) for i in range(11)]
    falling = [lr_share(i / 100, LATE, config) for i in range(10, 101)]
    assert 0 < rising[0] < 0.01
    assert rising[5] == pytest.approx(0.5)
    assert rising == sorted(rising)
    assert rising[-1] == pytest.approx(1)
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2)
    middle = {"cosine": 0.6, "linear": 0.6, "constant": 1.0}[schedule]
    assert lr_share(0.55, LATE, config) == pytest.approx(middle)
    if schedule == "cosine":  # flat at both ends, unlike the line
        assert lr_share(0.2, LATE, config) > 0.2 + 0.8 * (1 - 0.1 / 0.9)


def test_edges() -> None:
    assert lr_share(0, 0, OptimSection(warmup_share=0)) == 1
    assert lr_share(0.5, LATE, OptimSection(warmup_share=1)) == pytest.approx(0.5)
    assert lr_share(1, LATE, OptimSection(warmup_share=1)) == pytest.approx(1)
    assert lr_share(1.5, LATE, OptimSection(final_lr_share=0.05)) == pytest.approx(0.05)


def test_the_first_steps_warm_up_however_slow_they_are() -> None:
    """In a run limited by minutes one slow step may take a large share of the time."""
    config = OptimSection(warmup_share=0.04)
    rates = [lr_share(0.3, step, config) for step in range(MIN_WARMUP_STEPS - 1)]
    assert rates[0] <= 1.5 / MIN_WARMUP_STEPS
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(1, abs=0.02)
    # A run limited by steps knows its length, and a long one warms up for its whole share.
    assert lr_share(0.3, None, config) == lr_share(0.3, 5000, config) > 0.8
    assert lr_share(0.02, 5000, config) == pytest.approx(0.5)


def test_weights_of_the_loss_follow_their_points() -> None:
    section = LossSection(kl=[[0.2, 1.0], [0.4, 0.0]], tv=[[0.0, 0.0], [0.5, 0.5], [1.0, 0.9]])
    found = {share: loss_weights_at(section, share) for share in (0.0, 0.2, 0.25, 0.4, 0.75, 1.0)}
    kl = {share: weights.kl for share, weights in found.items()}
    assert kl == pytest.approx({0.0: 1.0, 0.2: 1.0, 0.25: 0.75, 0.4: 0.0, 0.75: 0.0, 1.0: 0.0})
    assert found[0.25].tv == pytest.approx(0.25)
    assert found[0.75].tv == pytest.approx(0.7)
    assert found[1.0].tv == 0.9
    assert {weights.ce for weights in found.values()} == {0.1}


def test_every_key_of_the_section_is_a_weight_and_back() -> None:
    """A term that the recipe names and the loss does not know would pass in silence."""
    assert set(LossSection.model_fields) == set(LossWeights.__dataclass_fields__)
    plain = loss_weights_at(LossSection(), 0.3)
    assert plain == LossWeights(ce=0.1, tv=0.9, bce=1.0, decay=4.0)
