"""The fused loss against plain autograd, and what it holds in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dspark.maths import fused_terms
from dspark.maths.loss_rows import row_terms
from dspark.maths.loss_weights import accepted_lengths, dpace_weights, length_slopes
from dspark.maths.losses import (
    DraftLoss,
    LossWeights,
    StepTotals,
    Teacher,
    draft_loss,
    position_weights,
)

A, K, D, R, V = 11, 5, 16, 6, 37
PAPER = LossWeights(ce=0.1, tv=0.9, bce=1.0, decay=4.0)
WEIGHTS = {
    "paper": PAPER,
    "ce": LossWeights(1.0, 0.0, 0.0, 4.0),
    "tv": LossWeights(0.0, 1.0, 0.0, 4.0),
    "flat": LossWeights(0.4, 0.3, 0.7, 1e9),
    "soft": LossWeights(0.0, 0.3, 0.7, 4.0, soft=0.8),
    "kl": LossWeights(0.0, 0.0, 0.0, 4.0, kl=0.7),
    "log overlap": LossWeights(0.0, 0.0, 0.0, 4.0, log_overlap=0.7),
    "greedy": LossWeights(0.0, 0.2, 0.0, 4.0, greedy=0.6),
    "length": LossWeights(0.0, 0.0, 0.0, 4.0, length=0.6),
    "dpace": LossWeights(0.3, 0.4, 0.7, 4.0, slots="dpace"),
    "all": LossWeights(0.1, 0.2, 0.3, 4.0, 0.0, 0.4, 0.5, 0.6, 0.7, "dpace"),
    "all but ce": LossWeights(0.0, 0.2, 0.3, 4.0, 0.3, 0.4, 0.5, 0.6, 0.7),
}


@dataclass
class Case:
    """Inputs of the loss; the first four want gradients."""

    hidden: Tensor
    features: Tensor | None
    w2: Tensor | None
    confidence: Tensor | None
    head: Tensor  # [V, D], the target's
    last: Tensor
    labels: Tensor  # target ids
    valid: Tensor
    cap: float | None = None
    d2t: Tensor | None = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        names = ("hidden", "features", "w2", "confidence")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def capped(self, logits: Tensor) -> Tensor:
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def blocks(self, part: slice) -> Case:
        """Some of the anchors, as a micro-batch; leaves stay the same tensors underneath."""
        rows = slice(part.start * K, part.stop * K)
        return replace(
            self,
            hidden=self.hidden[part],
            features=None if self.features is None else self.features[part],
            confidence=None if self.confidence is None else self.confidence[part],
            last=self.last[rows],
            labels=self.labels[part],
            valid=self.valid[part],
        )

    def fused(self, weights: LossWeights = PAPER, **options: Any) -> DraftLoss:
        head, labels = self.head, self.labels
        if self.d2t is not None:
            back = torch.full((V,), -1)
            back[self.d2t] = torch.arange(len(self.d2t))
            head, labels = self.head[self.d2t], back[labels]
        log_norm = self.capped(self.last @ self.head.T).float().logsumexp(-1)
        teacher = Teacher(self.last, log_norm, head, self.cap)
        return draft_loss(
            self.hidden,
            self.features,
            self.w2,
            self.confidence,
            teacher,
            labels,
            self.valid,
            weights,
            **options,
        )

    def plain(self, weights: LossWeights = PAPER) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(total, ce, tv, bce) with nothing clever: every distribution over the whole V."""
        columns = torch.arange(V) if self.d2t is None else self.d2t
        logits = self.capped(F.linear(self.hidden, self.head[columns]))
        if self.features is not None:
            logits = logits + F.linear(self.features, self.w2)
        empty = logits.new_zeros(*logits.shape[:2], V)
        p_d = empty.index_copy(2, columns, logits.softmax(-1))
        p_t = self.capped(self.last @ self.head.T).softmax(-1).view_as(p_d)
        w = torch.exp(-torch.arange(K) / weights.decay) * self.valid
        w = w / w.sum()
        alpha = torch.minimum(p_d, p_t).sum(-1)
        tv = (p_d - p_t).abs().sum(-1)
        own = p_d.gather(-1, self.labels[..., None])[..., 0]
        sayable = torch.isin(self.labels, columns)
        ce = torch.where(sayable, -torch.where(sayable, own, 1.0).log(), 0.0)
        if weights.soft:
            ce = -(p_t[..., columns] * p_d[..., columns].log()).sum(-1)
        terms = [(w * ce).sum(), (w * tv).sum(), torch.zeros(())]
        slot = self.dpace(torch.where(sayable, own, 0.0)) if weights.slots == "dpace" else w
        if self.confidence is not None:
            c = self.confidence.sigmoid()
            label = alpha.detach()
            terms[2] = -(w * (label * c.log() + (1 - label) * (1 - c).log())).sum()
        total = (weights.ce + weights.soft) * (slot * ce).sum() + weights.tv * (slot * tv).sum()
        total = total + weights.bce * terms[2]
        ratio = p_t[..., columns].log() - p_d[..., columns].log()
        total = total + weights.kl * (slot * (p_t[..., columns] * ratio).sum(-1)).sum()
        total = total - weights.log_overlap * (slot * alpha.log()).sum()
        best = p_t.argmax(-1)
        sure = p_t.amax(-1) >= 1 - p_t[..., columns].sum(-1) - 1e-6
        sure = sure & torch.isin(best, columns)
        chosen = torch.where(sure, p_d.gather(-1, best[..., None])[..., 0], 1.0)
        total = total - weights.greedy * (slot * chosen.log()).sum()
        total = total - weights.length * self.lengths(alpha) / int(self.valid.any(1).sum())
        return total, *terms

    def lengths(self, alpha: Tensor) -> Tensor:
        """Σ over blocks of Σ_k Π_{i≤k} α_i, a product at a time."""
        total = torch.zeros((), dtype=alpha.dtype)
        for a in range(len(alpha)):
            for k in range(int(self.valid[a].sum())):
                total = total + alpha[a, : k + 1].prod()
        return total

    def dpace(self, own: Tensor) -> Tensor:
        """D-PACE's weights over the anchors, as the paper writes them."""
        w = torch.zeros_like(own)
        for a in range(len(own)):
            valid = int(self.valid[a].sum())
            for j in range(valid):
                for m in range(j, valid):
                    w[a, j] += (0.5 * own[a, : m + 1] + 0.5).prod().detach()
        return w / int(self.valid.any(1).sum())


def case(kind: str = "markov") -> Case:
    def leaf(*shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(shape) * std).requires_grad_()

    has_head, reduced = kind != "plain", "reduced" in kind
    out = 15 if reduced else V
    return Case(
        hidden=leaf(A, K, D),
        features=leaf(A, K, R) if has_head else None,
        w2=leaf(out, R, std=0.6) if has_head else None,
        confidence=leaf(A, K) if has_head else None,
        head=torch.randn(V, D) * 0.4,
        last=torch.randn(A * K, D),
        labels=torch.randint(0, V, (A, K)),
        valid=torch.arange(K) < torch.randint(1, K + 1, (A, 1)),
        cap=1.5 if "softcap" in kind else None,
        d2t=torch.randperm(V)[:15].sort().values if reduced else None,
    )


KINDS = ["plain", "markov", "markov-softcap", "markov-reduced", "markov-reduced-softcap"]


def near(found: Any, expected: Any, atol: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), atol=atol, rtol=1e-4
    )


@pytest.fixture(params=["in place", "fused"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors and GPUs take different forms of the same terms; here both run, uncompiled."""
    if request.param == "fused":
        monkeypatch.setattr(fused_terms, "row_terms_in_place", row_terms)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("weights", list(WEIGHTS))
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_plain_autograd(kind: str, weights: str) -> None:
    given, how = case(kind), WEIGHTS[weights]
    loss, (total, ce, tv, bce) = given.fused(how, chunk=8), given.plain(how)
    near(loss.total, total)
    near([loss.ce, loss.tv, loss.bce], [float(x.detach()) for x in (ce, tv, bce)])
    mine = torch.autograd.grad(loss.total, list(given.leaves.values()), allow_unused=True)
    theirs = torch.autograd.grad(total, list(given.leaves.values()), allow_unused=True)
    for name, a, b in zip(given.leaves, mine, theirs, strict=True):
        near(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b)
        assert b is None or b.any() or (name == "confidence" and how.bce == 0)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("kind", KINDS)
def test_further_terms_are_told(kind: str) -> None:
    """Each mean is the total under that weight alone."""
    given = case(kind)
    loss = given.fused(WEIGHTS["all"], chunk=8)
    assert set(loss.extra) == {"kl", "log_overlap", "greedy", "length"}
    nothing = LossWeights(0.0, 0.0, 0.0, 4.0)
    for name, value in loss.extra.items():
        alone = float(given.plain(replace(nothing, **{name: 1.0}))[0].detach())
        near(-value if name == "length" else value, alone)
    assert given.fused().extra == {}


def test_log_overlap_pulls_where_tv_does_not() -> None:
    """A draft that is sure of a token that the target hardly says: TV's gradient vanishes."""
    given = case("plain")
    given.hidden = (given.hidden.detach() * 25).requires_grad_()
    pull = []
    for how in (WEIGHTS["tv"], WEIGHTS["log overlap"]):
        loss = given.fused(how)
        far = (loss.overlap_AK < 1e-3) & given.valid
        assert bool(far.any())
        pull.append(float(torch.autograd.grad(loss.total, given.hidden)[0][far].norm()))
    assert pull[1] > 100 * pull[0]


def test_equal_distributions_do_not_diverge() -> None:
    given = case("plain")
    given.hidden = given.last.view(A, K, D).clone().requires_grad_()
    loss = given.fused(WEIGHTS["all but ce"])
    near([loss.extra["kl"], loss.extra["log_overlap"]], [0.0, 0.0], atol=1e-5)
    near(loss.extra["length"], float(given.valid.sum() / A), atol=1e-4)
    grad = torch.autograd.grad(given.fused(WEIGHTS["kl"]).total, given.hidden)[0]
    assert float(grad.abs().max()) < 1e-6


def test_an_arg_max_that_the_draft_cannot_say_teaches_nothing() -> None:
    given, how = case("plain"), replace(WEIGHTS["greedy"], tv=0.0)
    given.d2t = torch.arange(1, V)
    given.labels = given.labels.clamp(min=1)
    given.valid[:] = True
    given.last[0] += 20 * given.head[0] / given.head[0].norm()
    assert int((given.last[:1] @ given.head.T).argmax()) == 0
    loss = given.fused(how)
    near(loss.total, given.plain(how)[0])
    grad = torch.autograd.grad(loss.total, given.hidden)[0]
    assert not grad[0, 0].any()
    assert grad[1:].any()


def test_dpace_by_hand() -> None:
    own = torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.4, 0.9]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    # (1 - a) p + a is 1, .5, .75 and .6, their products 1, .5, .375 and .6.
    near(dpace_weights(own, valid), torch.tensor([[1.875, 0.875, 0.375], [0.6, 0.0, 0.0]]))


def test_length_slopes_where_a_slot_has_no_overlap() -> None:
    """Nothing is divided by an overlap of 0: its slope is what accepting it would open."""
    alpha, valid = torch.tensor([[0.5, 0.0, 0.8]]), torch.ones(1, 3, dtype=torch.bool)
    near(accepted_lengths(alpha, valid), torch.tensor([0.5]))
    near(length_slopes(alpha, valid), torch.tensor([[1.0, 0.5 * 1.8, 0.0]]))


@pytest.mark.parametrize("weights", ["flat", "all but ce"])
def test_gradients_are_those_of_small_steps(weights: str) -> None:
    """Against differences in float64: independent of any autograd formula."""
    given = case("markov-reduced-softcap")
    loss = given.fused(WEIGHTS[weights], chunk=7)
    grads = torch.autograd.grad(loss.total, list(given.leaves.values()))
    for name, value in vars(given).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(given, name, value.detach().double())
    # The confidence label is held fixed, so the step may only move CE and TV.
    how = replace(WEIGHTS[weights], bce=0.0)
    for name, grad in zip(list(given.leaves)[:3], grads, strict=False):
        direction = torch.randn_like(given.leaves[name])
        sides = []
        for step in (-1e-6, 1e-6):
            moved = replace(given, **{name: given.leaves[name] + step * direction})
            sides.append(float(moved.plain(how)[0]))
        near(float((grad * direction).sum()), (sides[1] - sides[0]) / 2e-6, atol=2e-5)


@pytest.mark.parametrize("chunk", [1, 3, A * K - 1, A * K, 1000])
@pytest.mark.parametrize("weights", ["paper", "all"])
@pytest.mark.parametrize("kind", ["markov", "markov-reduced-softcap"])
def test_chunks_change_nothing(kind: str, weights: str, chunk: int) -> None:
    given, how = case(kind), WEIGHTS[weights]
    leaves = list(given.leaves.values())
    one, other = given.fused(how, chunk=13), given.fused(how, chunk=chunk)
    near(other.total, one.total)
    near(other.overlap_AK, one.overlap_AK)
    for a, b in zip(
        torch.autograd.grad(one.total, leaves),
        torch.autograd.grad(other.total, leaves),
        strict=True,
    ):
        near(a, b)


@pytest.mark.parametrize("weights", ["paper", "all"])
def test_micro_batches_add_up_to_the_step(weights: str) -> None:
    """Uneven ones: their own means would give another total."""
    given, how = case(), WEIGHTS[weights]
    leaves = list(given.leaves.values())
    whole = given.fused(how)
    parts = [given.blocks(slice(0, 2)), given.blocks(slice(2, 9)), given.blocks(slice(9, A))]
    step = StepTotals.of([given.valid], PAPER.decay)
    losses = [part.fused(how, totals=step) for part in parts]
    near(sum(loss.total for loss in losses), whole.total)
    for field in ("ce", "tv", "bce"):
        near(sum(getattr(loss, field) for loss in losses), getattr(whole, field))
    summed = torch.autograd.grad(sum(loss.total for loss in losses), leaves)
    for a, b in zip(summed, torch.autograd.grad(whole.total, leaves), strict=True):
        near(a, b)
    own = sum(part.fused(how).total for part in parts) / len(parts)
    assert abs(float((own - whole.total).detach())) > 1e-3


def test_the_gradient_of_a_scaled_loss_is_scaled() -> None:
    given = case()
    leaves, loss = list(given.leaves.values()), given.fused()
    once = torch.autograd.grad(loss.total, leaves, retain_graph=True)
    for a, b in zip(torch.autograd.grad(3 * loss.total, leaves), once, strict=True):
        near(a, 3 * b)


@pytest.mark.parametrize("kind", KINDS)
def test_slots_that_do_not_count_count_for_nothing(kind: str) -> None:
    given, how = case(kind), WEIGHTS["all"]
    loss = given.fused(how)
    other = replace(given, labels=torch.where(given.valid, given.labels, (given.labels + 1) % V))
    near(other.fused(how).total, loss.total)
    grad = torch.autograd.grad(loss.total, given.hidden)[0]
    assert not grad[~given.valid].any()
    assert grad[given.valid].any(-1).all()


def test_no_valid_slot_gives_zero_and_no_nan() -> None:
    given = case()
    given.valid[:] = False
    loss = given.fused(WEIGHTS["all"])
    loss.total.backward()
    assert float(loss.total.detach()) == 0
    assert all(not leaf.grad.any() for leaf in given.leaves.values())


def test_overlap_is_the_chance_of_acceptance() -> None:
    given = case("markov-reduced")
    loss = given.fused()
    logits = given.hidden @ given.head[given.d2t].T + given.features @ given.w2.T
    p_d = torch.zeros(A, K, V).index_copy(2, given.d2t, logits.softmax(-1).detach())
    p_t = (given.last @ given.head.T).softmax(-1).view_as(p_d)
    near(loss.overlap_AK, 1 - (p_d - p_t).abs().sum(-1) / 2)
    assert float(loss.overlap_AK.max()) < float(p_t[..., given.d2t].sum(-1).max())
    assert not loss.overlap_AK.requires_grad


def test_a_label_outside_the_draft_vocabulary_keeps_tv_and_confidence() -> None:
    given = case("markov-reduced")
    outside = sorted(set(range(V)) - set(given.d2t.tolist()))
    given.labels[:] = outside[0]
    loss = given.fused()
    assert loss.ce == 0
    assert loss.tv > 0.1
    assert loss.bce > 0.1
    near(loss.total, PAPER.tv * loss.tv + PAPER.bce * loss.bce)
    # The denominator stays: one known label among unknown ones gives its weight's share.
    given.labels[0, 0] = given.d2t[0]
    logits = given.hidden[0, 0] @ given.head[given.d2t].T + given.w2 @ given.features[0, 0]
    share = 1 / float(position_weights(given.valid, PAPER.decay).sum())
    near(given.fused().ce, -share * float(logits.log_softmax(-1)[0].detach()))


def test_equal_distributions_leave_the_entropy_alone() -> None:
    given = case("plain")
    given.hidden = given.last.view(A, K, D).clone().requires_grad_()
    loss = given.fused(LossWeights(1.0, 1.0, 0.0, 4.0))
    near(loss.overlap_AK, torch.ones(A, K), atol=1e-5)
    near(loss.tv, 0.0, atol=1e-5)
    assert loss.ce > 1


def test_position_weights() -> None:
    valid = torch.tensor([[True, True, True], [True, False, False]])
    expected = [[1, math.exp(-0.25), math.exp(-0.5)], [1, 0, 0]]
    near(position_weights(valid, 4.0), torch.tensor(expected))


def test_confidence_gets_the_overlap_as_its_label() -> None:
    """And the drafter no gradient through it."""
    given, how = case(), LossWeights(0.0, 0.0, 1.0, 4.0)
    loss = given.fused(how)
    w = position_weights(given.valid, how.decay)
    grads = torch.autograd.grad(loss.total, list(given.leaves.values()))
    by_name = dict(zip(given.leaves, grads, strict=True))
    pull = given.confidence.sigmoid() - loss.overlap_AK
    near(by_name["confidence"], (w / w.sum() * pull).detach())
    assert not any(by_name[name].any() for name in ("hidden", "features", "w2"))


def test_without_confidence_there_is_no_such_term() -> None:
    given = replace(case(), confidence=None)
    assert given.fused().bce == 0
    near(given.fused().total, given.fused(replace(PAPER, bce=5.0)).total)


@pytest.mark.usefixtures("form")
def test_without_gradients_the_values_are_the_same() -> None:
    given = case()
    with torch.no_grad():
        silent = given.fused()
    near(silent.total, given.fused().total.detach())


@pytest.mark.usefixtures("form")
def test_bfloat16_weights_stay_close() -> None:
    """The target's head may be bfloat16 while the drafter trains in float32."""
    given = case()
    leaves = list(given.leaves.values())
    exact = torch.autograd.grad(given.fused().total, leaves)
    rounded = replace(given, head=given.head.bfloat16(), last=given.last.bfloat16())
    loss = rounded.fused()
    near(loss.total, given.fused().total, atol=0.02)
    for a, b in zip(torch.autograd.grad(loss.total, leaves), exact, strict=True):
        assert a.dtype == b.dtype
        assert float((a - b).norm() / b.norm()) < 0.1


class Largest(TorchDispatchMode):
    """Records the most numbers that any tensor made meanwhile holds."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


@pytest.mark.parametrize("how", [PAPER, WEIGHTS["all"]], ids=["paper", "all"])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_no_tensor_of_all_rows_by_the_vocabulary(cap: float | None, how: LossWeights) -> None:
    anchors, slots, size, rank, vocabulary, chunk = 128, 4, 12, 4, 1000, 32
    rows = anchors * slots
    hidden = torch.randn(anchors, slots, size, requires_grad=True)
    features = torch.randn(anchors, slots, rank, requires_grad=True)
    w2 = torch.randn(vocabulary, rank, requires_grad=True)
    confidence = torch.randn(anchors, slots, requires_grad=True)
    head, last = torch.randn(vocabulary, size), torch.randn(rows, size)
    teacher = Teacher(last, torch.full((rows,), 9.0), head, cap)
    labels = torch.randint(0, vocabulary, (anchors, slots))
    with Largest() as seen:
        draft_loss(
            hidden,
            features,
            w2,
            confidence,
            teacher,
            labels,
            torch.ones(anchors, slots, dtype=torch.bool),
            how,
            chunk=chunk,
        ).total.backward()
    assert w2.grad is not None
    assert w2.grad.any()
    assert seen.numel == chunk * vocabulary  # the mode does see them, and they are a chunk's
    assert seen.numel < rows * vocabulary / 10
