"""Losses over candidates against plain autograd, and what they hold in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dspark.maths.candidates import LEAST_MASS, best, spread
from dspark.maths.losses import DraftLoss, LossWeights, Teacher, draft_loss

A, K, D, R, V, C = 9, 4, 16, 6, 41, 7
PAPER = LossWeights(ce=0.1, tv=0.9, bce=0.5, decay=4.0)
ALL = LossWeights(0.1, 0.2, 0.3, 4.0, 0.0, 0.4, 0.5, 0.6, 0.7, "dpace")


class Case:
    """Inputs of the loss; the first four want gradients."""

    def __init__(self, cap: float | None = None, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.hidden = torch.randn(A, K, D, requires_grad=True)
        self.features = torch.randn(A, K, R, requires_grad=True)
        self.w2 = (torch.randn(V, R) * 0.6).requires_grad_()
        self.confidence = torch.randn(A, K, requires_grad=True)
        self.head = torch.randn(V, D) * 0.4
        # Near to what the draft says, or its candidates would hold next to nothing.
        self.last = self.hidden.detach().flatten(0, 1) + torch.randn(A * K, D)
        self.labels = torch.randint(-1, V, (A, K))
        self.valid = torch.arange(K) < torch.randint(1, K + 1, (A, 1))
        self.cap = cap

    @property
    def leaves(self) -> list[Tensor]:
        return [self.hidden, self.features, self.w2, self.confidence]

    def capped(self, logits: Tensor) -> Tensor:
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def found(self, weights: LossWeights, **options: Any) -> DraftLoss:
        log_norm = self.capped(self.last @ self.head.T).logsumexp(-1)
        teacher = Teacher(self.last, log_norm, self.head, self.cap)
        given = *self.leaves, teacher, self.labels, self.valid, weights
        return draft_loss(*given, candidates=C, **options)

    def plain(self, weights: LossWeights) -> tuple[Tensor, Tensor]:
        """Total and overlap, a slot at a time."""
        base = self.capped(F.linear(self.hidden, self.head))
        p_t = self.capped(self.last @ self.head.T).softmax(-1).view(A, K, V)
        w = torch.exp(-torch.arange(K) / weights.decay) * self.valid
        w = w / w.sum()
        total, overlap = torch.zeros(()), torch.zeros(A, K)
        for a in range(A):
            for k in range(K):
                ids = base[a, k].detach().sort(descending=True).indices[:C].tolist()
                scores = base[a, k, ids] + self.w2[ids] @ self.features[a, k]
                p_d, own = scores.softmax(-1), p_t[a, k, ids]
                label = torch.minimum(p_d, own).sum().detach()
                overlap[a, k] = label
                c = self.confidence[a, k].sigmoid()
                bce = -(label * c.log() + (1 - label) * (1 - c).log())
                total = total + weights.bce * w[a, k] * bce
                if float(own.sum()) < LEAST_MASS:
                    continue
                slot = weights.tv * (p_d - own / own.sum()).abs().sum()
                if int(self.labels[a, k]) in ids:
                    slot = slot - weights.ce * p_d[ids.index(int(self.labels[a, k]))].log()
                renormalised = own / own.sum()
                slot = slot + weights.kl * (renormalised * (renormalised / p_d).log()).sum()
                total = total + w[a, k] * slot
        return total, overlap


def near(found: Tensor, expected: Tensor, atol: float = 2e-6) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("weights", [PAPER, replace(PAPER, kl=0.7)], ids=["paper", "kl"])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_value_and_gradients_are_those_of_plain_autograd(
    weights: LossWeights, cap: float | None
) -> None:
    given = Case(cap)
    loss, (total, overlap) = given.found(weights, chunk=8), given.plain(weights)
    near(loss.total, total)
    near(loss.overlap_AK, overlap)
    mine = torch.autograd.grad(loss.total, given.leaves)
    theirs = torch.autograd.grad(total, given.leaves)
    for a, b in zip(mine, theirs, strict=True):
        near(a, b)
        assert b.any()


def test_candidates_that_the_target_does_not_say_are_left_out() -> None:
    given = Case()
    with torch.no_grad():
        far = given.head[torch.arange(V) % 2 == 0].sum(0)
        given.last[0] = 60 * far / far.norm()
        given.hidden[0, 0] = -60 * far / far.norm()
    given.valid[0, 0] = True
    loss = given.found(replace(PAPER, bce=0.0))
    grad = torch.autograd.grad(loss.total, given.hidden)[0]
    assert not grad[0, 0].any()
    assert grad[1:][given.valid[1:]].any(-1).all()
    near(loss.total, given.plain(replace(PAPER, bce=0.0))[0])


@pytest.mark.parametrize("chunk", [1, 5, A * K - 1, 1000])
def test_chunks_change_nothing(chunk: int) -> None:
    given = Case()
    one, other = given.found(ALL), given.found(ALL, chunk=chunk)
    near(other.total, one.total)
    assert one.extra.keys() == {"kl", "log_overlap", "greedy", "length"}
    for a, b in zip(
        torch.autograd.grad(one.total, given.leaves),
        torch.autograd.grad(other.total, given.leaves),
        strict=True,
    ):
        near(a, b)


def test_all_tokens_as_candidates_are_the_loss_over_all() -> None:
    given = Case()
    every = given.found(ALL, chunk=16)
    log_norm = (given.last @ given.head.T).logsumexp(-1)
    teacher = Teacher(given.last, log_norm, given.head)
    full = *given.leaves, teacher, given.labels, given.valid, ALL
    few, whole = draft_loss(*full, candidates=V + 5), draft_loss(*full)
    near(few.total, whole.total)
    assert abs(float((every.total - whole.total).detach())) > 1e-3
    for a, b in zip(
        torch.autograd.grad(few.total, given.leaves),
        torch.autograd.grad(whole.total, given.leaves),
        strict=True,
    ):
        near(a, b)


def test_without_gradients_the_values_are_the_same() -> None:
    given = Case()
    with torch.no_grad():
        silent = given.found(ALL)
    near(silent.total, given.found(ALL).total.detach())


def test_spread_rules_all_others_out() -> None:
    logits = torch.randn(3, V)
    values, ids = best(logits, C)
    whole = spread(values, ids, V)
    assert torch.equal(whole.isfinite().sum(-1), torch.full((3,), C))
    assert torch.equal(whole.argmax(-1), logits.argmax(-1))
    assert torch.equal(whole[whole.isfinite()], logits[whole.isfinite()])
    assert best(logits, V + 3)[1].shape == (3, V)
