"""The loss of the parallel logits alone, and rounds in which the head reads its own draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dspark.drafters.block.heads import MARKOV_HEADS, MarkovHead, make_markov_head
from dspark.drafters.block.losses import (
    FREE_ROUNDS,
    BlockOutputs,
    BlockTruth,
    block_loss,
    draw_slots,
    free_rounds,
)
from dspark.maths.losses import LossWeights, Teacher, draft_loss

A, K, D, R, V = 6, 4, 16, 5, 23
PAPER = LossWeights(ce=0.1, tv=0.9, bce=0.7, decay=4.0)


def case(kind: str = "vanilla") -> tuple[BlockOutputs, BlockTruth, MarkovHead]:
    torch.manual_seed(1)
    head = make_markov_head(kind, V, V, R, D, K)
    for weight in head.parameters():
        weight.data += torch.randn(weight.shape) * 0.5
    hidden = torch.randn(A, K, D, requires_grad=True)
    anchors, labels = torch.randint(0, V, (A,)), torch.randint(0, V, (A, K))
    previous = head.previous(torch.cat([anchors[:, None], labels[:, :-1]], 1))
    features = head.features(previous, hidden)
    out = BlockOutputs(hidden, features, torch.randn(A, K, requires_grad=True))
    last, rows = torch.randn(A * K, D), torch.randn(V, D) * 0.5
    teacher = Teacher(last, (last @ rows.T).logsumexp(-1), rows)
    valid = torch.arange(K) < torch.randint(1, K + 1, (A, 1))
    draws = torch.rand(A, K, dtype=torch.float64)
    return out, BlockTruth(teacher, anchors, labels, valid, draws), head


def loss(kind: str, weights: LossWeights, candidates: int = 0) -> Any:
    out, truth, head = case(kind)
    return block_loss(out, truth, head, candidates, lambda ids: ids, weights, None)


def same(ids: Tensor) -> Tensor:
    return ids


def drawn_by_hand(out: BlockOutputs, truth: BlockTruth, head: MarkovHead, few: int) -> Tensor:
    """What each slot draws, one at a time."""
    assert out.features_AKr is not None
    drawn = torch.zeros(A, K, dtype=torch.long)
    for a in range(A):
        for k in range(K):
            base = truth.teacher.head_VD @ out.hidden_AKD[a, k]
            logits = base + head.markov_w2.weight @ out.features_AKr[a, k]
            if few:
                logits[base < base.sort(descending=True).values[few - 1]] = float("-inf")
            ends = logits.softmax(-1).double().cumsum(-1)
            drawn[a, k] = int((ends > truth.draws_AK[a, k]).nonzero()[0])
    return drawn


@pytest.mark.parametrize("few", [0, 3])
def test_slots_are_drawn_from_the_distribution_of_the_draft(few: int) -> None:
    out, truth, head = case()
    assert out.features_AKr is not None
    given = out.hidden_AKD, out.features_AKr, head.markov_w2.weight, truth.teacher
    drawn = draw_slots(*given, truth.draws_AK, few)
    assert torch.equal(drawn, drawn_by_hand(out, truth, head, few))
    assert not torch.equal(drawn, truth.labels_AK)


@pytest.mark.parametrize("few", [0, 3])
@pytest.mark.parametrize("kind", list(MARKOV_HEADS))
def test_the_first_round_reads_what_was_drawn_along_true_tokens(kind: str, few: int) -> None:
    out, truth, head = case(kind)
    rounds = free_rounds(out, truth, head, few, same)
    assert len(rounds) == FREE_ROUNDS
    drawn = drawn_by_hand(out, truth, head, few)
    ids = torch.cat([truth.anchor_ids_A[:, None], drawn[:, :-1]], 1)
    torch.testing.assert_close(rounds[0], head.features(head.previous(ids), out.hidden_AKD))
    # Each further round reads other draws: those of the one before.
    again = replace(out, features_AKr=rounds[0])
    later = replace(truth, draws_AK=(truth.draws_AK + 0.6180339887498949) % 1)
    drawn = drawn_by_hand(again, later, head, few)
    ids = torch.cat([truth.anchor_ids_A[:, None], drawn[:, :-1]], 1)
    torch.testing.assert_close(rounds[1], head.features(head.previous(ids), out.hidden_AKD))


def test_draws_of_a_reduced_vocabulary_go_back_by_target_id() -> None:
    out, truth, head = case()
    rounds = free_rounds(out, truth, head, 0, lambda ids: (ids + 3) % V)
    drawn = (drawn_by_hand(out, truth, head, 0) + 3) % V
    assert torch.equal(rounds[0][:, 1:], head.previous(drawn[:, :-1]))
    assert torch.equal(rounds[0][:, 0], head.previous(truth.anchor_ids_A))


@pytest.mark.parametrize("few", [0, 5])
@pytest.mark.parametrize("kind", ["vanilla", "refined", "residual_rnn"])
def test_terms_add_up(kind: str, few: int) -> None:
    """The loss, and the same of the parallel logits alone and of each round, by their weights."""
    weights = replace(PAPER, base=0.6, free=0.3)
    found, plain = loss(kind, weights, few), loss(kind, PAPER, few)
    out, truth, head = case(kind)
    taught = truth.teacher, truth.labels_AK, truth.valid_AK, weights
    base = draft_loss(out.hidden_AKD, None, None, None, *taught)
    w2 = head.markov_w2.weight
    rounds = [
        draft_loss(out.hidden_AKD, features, w2, None, *taught, candidates=few).total
        for features in free_rounds(out, truth, head, few, same)
    ]
    free = torch.stack(rounds).mean()
    told = {"base": float(base.total.detach()), "free": float(free.detach())}
    assert found.extra == pytest.approx(told, rel=1e-5)
    torch.testing.assert_close(found.total, plain.total + 0.6 * base.total + 0.3 * free)
    assert torch.equal(found.overlap_AK, plain.overlap_AK)
    assert plain.extra == {}


def test_gradients_of_free_rounds_reach_head_and_states() -> None:
    out, truth, head = case("refined")
    weights = LossWeights(0.0, 0.0, 0.0, 4.0, free=1.0)
    total = block_loss(out, truth, head, 0, same, weights, None).total
    assert float(total.detach()) == 0  # the terms themselves have no weight
    weights = replace(weights, tv=1.0)
    only_free = block_loss(out, truth, head, 0, same, weights, None)
    only_free.total.backward()
    assert out.hidden_AKD.grad is not None
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_without_a_head_there_is_nothing_to_add() -> None:
    out, truth, _ = case()
    plain = replace(out, features_AKr=None)
    weights = replace(PAPER, base=0.6, free=0.3)
    found = block_loss(plain, truth, None, 0, same, weights, None)
    assert found.extra == {}
    torch.testing.assert_close(
        found.total, block_loss(plain, truth, None, 0, same, PAPER, None).total
    )
