"""Anchors: the golden convention, and draws that depend on their key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dspark.errors import ConfigError
from dspark.maths.anchors import draw_anchors, label_valid

# Numbers of the project's golden file: sequence, response mask, four anchors of five slots.
GOLDEN_IDS = np.array(
    [
        [90, 71, 131, 131, 140, 114, 4, 12, 61, 85, 47, 32],
        [33, 146, 78, 86, 147, 85, 61, 81, 53, 0, 3, 133],
    ]
).ravel()
GOLDEN_MASK = np.arange(24) >= 8
GOLDEN_ANCHORS = np.array([9, 12, 17, 22])
GOLDEN_LABELS = np.array(
    [[47, 32, 33, 146, 78], [146, 78, 86, 147, 85], [61, 81, 53, 0, 3], [133] * 5]
)
GOLDEN_VALID = np.array([[True] * 5, [True] * 5, [True] * 5, [True] + [False] * 4])


def draw_some(mask=GOLDEN_MASK, count=6, seed=1, epoch=0, sample_id="a"):
    return draw_anchors(mask, count, 5, seed=seed, epoch=epoch, sample_id=sample_id)


def test_golden_labels() -> None:
    valid = label_valid(GOLDEN_MASK, GOLDEN_ANCHORS, 5)
    assert np.array_equal(valid, GOLDEN_VALID)
    positions = np.minimum(GOLDEN_ANCHORS[:, None] + np.arange(1, 6), 23)
    assert np.array_equal(GOLDEN_IDS[positions][valid], GOLDEN_LABELS[valid])


def test_golden_anchors_are_among_all_candidates() -> None:
    every = draw_some(count=10**6)
    assert every.dtype == np.int64
    assert every.tolist() == list(range(8, 23))
    assert set(GOLDEN_ANCHORS) <= set(every)


def test_a_hole_in_the_mask_ends_the_block_for_good() -> None:
    mask = np.array([1, 1, 1, 0, 1, 1], dtype=bool)
    assert draw_some(mask, 99).tolist() == [0, 1, 4]
    expected = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert label_valid(mask, np.array([0, 1, 4]), 4).astype(int).tolist() == expected


def test_draws_are_frozen() -> None:
    mask = np.ones(1000, dtype=bool)
    assert draw_some(mask, 5, sample_id="gsm8k/7").tolist() == [109, 369, 449, 557, 971]


def test_draws_depend_on_every_part_of_the_key_and_nothing_else() -> None:
    mask = np.ones(4000, dtype=bool)
    first = draw_some(mask, 50)
    assert np.array_equal(first, draw_some(mask, 50))
    assert (np.diff(first) > 0).all()
    assert len(first) == 50
    for changed in ({"seed": 2}, {"epoch": 1}, {"sample_id": "b"}):
        assert len(np.intersect1d(first, draw_some(mask, 50, **changed))) < 10
    assert set(draw_some(mask, 20)) <= set(first)


def test_every_candidate_is_equally_likely() -> None:
    hits = np.zeros(24)
    for epoch in range(3000):
        hits[draw_some(epoch=epoch)] += 1
    assert not hits[:8].any()
    assert not hits[23]
    # Draws without replacement: the variance shrinks by the share not drawn.
    share, count = 6 / 15, 15
    statistic = ((hits[8:23] - 3000 * share) ** 2).sum() / (3000 * share * (1 - share))
    statistic *= (count - 1) / count
    half = torch.tensor([(count - 1) / 2, statistic / 2], dtype=torch.float64)
    assert torch.special.gammaincc(half[0], half[1]) > 1e-4


@pytest.mark.parametrize("mask", [[], [True], [True, False, True], [False] * 9])
def test_no_candidates(mask):
    anchors = draw_some(np.array(mask, dtype=bool))
    assert anchors.shape == (0,)
    assert label_valid(np.array(mask, dtype=bool), anchors, 5).shape == (0, 5)


def test_bad_sizes() -> None:
    with pytest.raises(ConfigError):
        draw_some(count=-1)
    with pytest.raises(ConfigError):
        draw_anchors(GOLDEN_MASK, 3, 0, seed=0, epoch=0, sample_id="a")
    with pytest.raises(ConfigError):
        label_valid(GOLDEN_MASK, GOLDEN_ANCHORS, 0)
    assert draw_some(count=0).shape == (0,)
