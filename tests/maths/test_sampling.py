"""Probabilities and draws against a slow, obvious reference."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark.core import SamplingParams
from dspark.errors import EngineError
from dspark.maths.rng import Use, uniform
from dspark.maths.sampling import draw, probabilities, sample

torch.set_num_threads(1)
INF = float("inf")


def reference(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """One row, one token at a time, in double precision."""
    best = max(range(len(logits)), key=lambda i: (logits[i], -i))
    if temperature == 0:
        return [float(i == best) for i in range(len(logits))]
    weights = [math.exp((logit - logits[best]) / temperature) for logit in logits]
    kept = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        kept = kept[:top_k]
    total, mass, prefix = math.fsum(weights[i] for i in kept), 0.0, []
    for i in kept:
        prefix.append(i)
        mass += weights[i] / total
        if top_p < 1 and mass >= top_p:
            break
    share = math.fsum(weights[i] for i in prefix)
    return [weights[i] / share if i in prefix else 0.0 for i in range(len(logits))]


def chi2_p(observed, expected) -> float:
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    assert not observed[expected == 0].any()
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum()
    half = torch.tensor([(observed.size - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


# Steps of 1/4 make ties frequent; odd masses keep top-p off exact hits, where rounding decides.
LOGIT = st.one_of(st.integers(-20, 20).map(lambda n: n / 4), st.just(-INF))
ROW = st.tuples(
    st.sampled_from([0.0, 0.25, 1.0, 1.7]),
    st.integers(0, 90),
    st.sampled_from([1.0, 0.95317, 0.5171, 0.1313, 1e-9]),
)


@st.composite
def batches(draw_from):
    vocabulary = draw_from(st.integers(1, 80))
    params = draw_from(st.lists(ROW, min_size=1, max_size=4))
    row = st.lists(LOGIT, min_size=vocabulary, max_size=vocabulary).filter(
        lambda logits: max(logits) > -INF
    )
    return [draw_from(row) for _ in params], params


@settings(max_examples=250, deadline=None, derandomize=True)
@given(batches())
def test_probabilities_match_the_reference(batch):
    logits, params = batch
    found = probabilities(torch.tensor(logits), *zip(*params, strict=True))
    assert found.dtype == torch.float32
    for row, expected in zip(
        found, map(reference, logits, *zip(*params, strict=True)), strict=True
    ):
        assert row.tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(0, 0.95), (0, 0.3), (50, 1.0), (50, 0.9), (700, 1.0), (5000, 0.97), (0, 0.99999)],
)
def test_a_large_vocabulary_needs_no_other_code(scale, top_k, top_p):
    logits = torch.randn(2, 6000, generator=torch.Generator().manual_seed(1)) * scale
    found = probabilities(logits, [0.9] * 2, [top_k] * 2, [top_p] * 2)
    for row, values in zip(found, logits.tolist(), strict=True):
        expected = torch.tensor(reference(values, 0.9, top_k, top_p))
        # A float32 normaliser may place a cut in the far tail one token off.
        assert (row - expected).abs().sum() < 1e-5


@pytest.mark.parametrize("count", [3, 64, 65, 200])
def test_ties_at_the_cut_go_to_the_lowest_ids(count):
    logits = torch.full((3, 300), -4.0)
    tied = torch.arange(299, -1, -1)[:250].sort().values  # ids 50..299
    logits[:, tied] = 1.0
    logits[1, 7] = 2.0
    found = probabilities(logits, 1.0, [count, count, 0], [1.0, 1.0, 0.3])
    assert found[0].nonzero()[:, 0].tolist() == tied[:count].tolist()
    assert found[1].nonzero()[:, 0].tolist() == [7, *tied[: count - 1].tolist()]
    third = found[2].nonzero()[:, 0].tolist()
    assert third == tied[: len(third)].tolist()
    assert found.sum(-1).tolist() == pytest.approx([1.0] * 3)


def test_rows_do_not_depend_on_batch_mates() -> None:
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(2)) * 2
    params = [
        (0.0, 0, 1.0),
        (1.0, 0, 1.0),
        (0.7, 0, 0.9),
        (1.0, 5, 1.0),
        (1.3, 300, 0.9),
        (1.0, 0, 0.99),
    ]
    together = probabilities(logits, *zip(*params, strict=True))
    for row, (logit, param) in enumerate(zip(logits, params, strict=True)):
        alone = probabilities(logit[None], *([value] for value in param))
        assert torch.equal(alone[0], together[row])


def test_temperature_zero_takes_the_first_of_equal_logits() -> None:
    found = probabilities(
        torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]]), [0.0] * 2, [0, 2], [1, 0.1]
    )
    assert found.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_the_input_stays_as_it_was() -> None:
    logits = torch.randn(2, 40)
    before = logits.clone()
    for temperature, top_k, top_p in [(0, 0, 1), (1, 0, 1), (1, 3, 0.5), (0.5, 0, 0.5)]:
        probabilities(logits, temperature, top_k, top_p)
    assert torch.equal(logits, before)


def test_extremes() -> None:
    only = torch.tensor([[-INF, 0.5, -INF]])
    for temperature, top_k, top_p in [(0, 0, 1), (1, 0, 1), (1, 3, 1), (1, 99, 0.5), (1e-40, 0, 1)]:
        assert probabilities(only, temperature, top_k, top_p).tolist() == [[0, 1, 0]]
    two = torch.tensor([[1.0, 1.5]])
    assert probabilities(two, 1.0, 0, 1e-12).tolist() == [[0, 1]]
    assert probabilities(two, 1.0, 99, 1.0).tolist() == probabilities(two, 1.0, 0, 1.0).tolist()
    assert probabilities(torch.tensor([[3.0]]), 1.0, 1, 0.1).tolist() == [[1]]
    assert probabilities(torch.zeros(0, 5), [], [], []).shape == (0, 5)
    assert probabilities(two.bfloat16(), 1.0, 0, 1.0).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("bad", [[math.nan, 0.0], [INF, 0.0], [-INF, -INF]])
def test_logits_without_a_finite_maximum_are_refused(temperature, bad):
    with pytest.raises(EngineError, match="row 1"):
        probabilities(torch.tensor([[0.0, 1.0], bad]), [temperature] * 2, [0] * 2, [1.0] * 2)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.just(0), st.integers(1, 64)), min_size=1, max_size=700).filter(any),
    st.floats(0, 1, exclude_max=True),
)
def test_draw_inverts_the_cumulative_distribution(weights, u):
    """Whole-number weights sum exactly, so the reference is exact too."""
    point = u * sum(weights)
    expected = bisect_right(list(accumulate(weights)), point)
    assert (
        draw(torch.tensor([weights], dtype=torch.float32), torch.tensor([u]).double()).item()
        == expected
    )


@pytest.mark.parametrize("total", [1.0, 1e-6, 0.9999999, 1.0000001])
@pytest.mark.parametrize("u", [0.0, 1e-300, 0.5, 1 - 2**-53, 1.0])
def test_draw_never_returns_a_token_without_mass(total, u):
    for vocabulary in (1, 2, 255, 256, 257, 5000):
        probs = torch.rand(20, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
        probs[:, 1:][probs[:, 1:] < 0.7] = 0
        probs[:, : vocabulary // 3] = 0  # nothing at the start ...
        probs[:, vocabulary - vocabulary // 3 :] = 0  # ... nor at the end
        probs[:, vocabulary // 2] += 0.1
        probs *= total / probs.sum(-1, keepdim=True)
        ids = draw(probs, torch.full((20,), u, dtype=torch.float64))
        assert (probs.gather(1, ids[:, None]) > 0).all()


def test_draw_sees_mass_below_single_precision() -> None:
    """A cumulative sum in float32 would swallow these tails."""
    probs = torch.zeros(2, 1000)
    probs[:, 3], probs[:, 999] = 1.0, 1e-12
    assert draw(probs, np.array([1 - 5e-13, 1 - 2e-12])).tolist() == [999, 3]


def test_draw_accepts_views_and_refuses_empty_rows() -> None:
    probs = torch.eye(6)[:, ::2]
    assert draw(probs[::2], torch.zeros(3).double()).tolist() == [0, 1, 2]
    with pytest.raises(EngineError):
        draw(probs, torch.zeros(6).double())
    with pytest.raises(EngineError):
        draw(torch.full((1, 4), math.nan), torch.zeros(1).double())


@pytest.mark.parametrize("param", [(1.0, 0, 1.0), (0.6, 0, 0.9), (1.0, 40, 1.0)])
def test_draws_follow_the_distribution(param):
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(4)) * 2
    probs = probabilities(logits, *param)
    count = 40_000
    u = uniform(seed=5, request=0, sample=0, round=np.arange(count), slot=0, use=Use.TARGET)
    ids = torch.cat([draw(probs.expand(4000, -1), part) for part in np.split(u, 10)])
    observed = torch.bincount(ids, minlength=500).numpy()
    expected = probs[0].double().numpy() / probs.double().sum().item() * count
    rare = (expected > 0) & (expected < 5)  # pooled, as the chi-square approximation needs
    assert observed[expected == 0].sum() == 0
    pooled = [np.append(x[expected >= 5], x[rare].sum()) for x in (observed, expected)]
    assert chi2_p(*pooled) > 1e-4
    tilted = pooled[1] * np.linspace(0.9, 1.1, len(pooled[1]))  # the test can fail
    assert chi2_p(pooled[0], tilted * count / tilted.sum()) < 1e-4


def test_sample_joins_the_two() -> None:
    logits = torch.randn(3, 64, generator=torch.Generator().manual_seed(6))
    params = [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.5, top_k=10, top_p=0.9),
    ]
    u = np.array([0.9, 0.3, 0.99])
    expected = draw(probabilities(logits, [0, 1, 0.5], [0, 0, 10], [1, 1, 0.9]), u)
    assert torch.equal(sample(logits, params, u), expected)
    assert expected[0] == logits[0].argmax()
