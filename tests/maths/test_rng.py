"""Counter-based random numbers: known answers, independence of neighbouring keys, uniformity."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from dspark.maths.rng import Use, philox, uniform

BASE = {"seed": 11, "request": 3, "sample": 0, "round": 5, "slot": 2, "use": int(Use.ACCEPT)}
FIELDS = list(BASE)
RANGES = {"seed": 64, "request": 32, "sample": 24, "round": 32, "slot": 32, "use": 8}


def numbers(**changed):
    return uniform(**(BASE | changed))


def chi2_p(observed, expected) -> float:
    observed, expected = np.asarray(observed, float).ravel(), np.asarray(expected, float).ravel()
    statistic = ((observed - expected) ** 2 / expected).sum()
    half = torch.tensor([(observed.size - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, answer):
    words = philox(tuple(map(np.uint64, counter)), tuple(map(np.uint64, key)))
    assert " ".join(f"{int(word):08x}" for word in words) == answer


def test_numbers_are_frozen() -> None:
    found = uniform(
        seed=[0, 1, 2**63 - 1, 7],
        request=[0, 0, 2**32 - 1, 12],
        sample=[0, 0, 2**24 - 1, 1],
        round=[0, 0, 2**32 - 1, 34],
        slot=[0, 0, 2**32 - 1, 5],
        use=[Use.DRAFT, Use.DRAFT, 255, Use.RESIDUAL],
    )
    assert found.tolist() == [
        0.3990464708489645,
        0.8902591729757107,
        0.5744756780256609,
        0.3488026810227628,
    ]


def test_all_zero_key_is_the_first_known_answer() -> None:
    zero = uniform(seed=0, request=0, sample=0, round=0, slot=0, use=0)
    assert float(zero) == (0x6627E8D5E169C58D >> 11) / 2**53


def test_no_dependence_on_batch_shape() -> None:
    requests, slots = np.arange(6)[:, None], np.arange(7)
    batch = numbers(request=requests, slot=slots)
    assert batch.shape == (6, 7)
    assert batch.dtype == np.float64
    for request, slot in itertools.product(range(6), range(7)):
        assert float(numbers(request=request, slot=slot)) == batch[request, slot]
    assert np.array_equal(numbers(request=np.arange(6)[::-1], slot=4), batch[::-1, 4])


def test_empty_batch() -> None:
    assert numbers(request=np.zeros((0, 1), int), slot=np.arange(3)).shape == (0, 3)


@pytest.mark.parametrize("field", [field for field in FIELDS if field != "use"])
def test_a_million_keys_that_differ_in_one_field_never_collide(field):
    found = numbers(**{field: np.arange(10**6)})
    assert found.min() >= 0
    assert found.max() < 1
    assert len(np.unique(found)) == 10**6


def test_no_collision_where_fields_could_run_into_each_other() -> None:
    edges = {name: [0, 1, 2, 2**bits - 1] for name, bits in RANGES.items()}
    keys = np.array(list(itertools.product(*edges.values())), dtype=np.uint64).T
    found = uniform(**dict(zip(edges, keys, strict=True)))
    assert len(np.unique(found)) == 4**6


@pytest.mark.parametrize("field", FIELDS)
def test_uniform_in_every_field(field):
    count = 256 if field == "use" else 10**5
    found = np.sort(numbers(**{field: np.arange(count)}))
    grid = np.arange(count)
    distance = max((found - grid / count).max(), ((grid + 1) / count - found).max())
    # Kolmogorov's tail bound: P(D > d) <= 2 exp(-2 n d^2)
    assert 2 * math.exp(-2 * count * distance**2) > 1e-4
    if count > 1000:
        assert chi2_p(np.histogram(found, 100, (0, 1))[0], np.full(100, count / 100)) > 1e-4


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("swept", ["request", "round", "slot"])
def test_neighbouring_keys_are_independent(field, swept):
    """Pairs whose keys differ by one in `field`, over 10^5 values of another field."""
    if field == swept:
        every = numbers(**{swept: np.arange(2 * 10**5)})
        left, right = every[::2], every[1::2]
    else:
        sweep = {swept: np.arange(10**5)}
        left, right = numbers(**sweep), numbers(**sweep, **{field: BASE[field] + 1})
    correlation = np.corrcoef(left, right)[0, 1]
    assert math.erfc(abs(correlation) * math.sqrt(len(left) / 2)) > 1e-4
    cells = np.histogram2d(left, right, bins=20, range=[(0, 1), (0, 1)])[0]
    assert chi2_p(cells, np.full((20, 20), len(left) / 400)) > 1e-4


def test_low_bits_are_balanced() -> None:
    bits = (numbers(slot=np.arange(10**5)) * 2**53).astype(np.uint64)
    for place in range(53):
        ones = int(((bits >> np.uint64(place)) & np.uint64(1)).sum())
        assert math.erfc(abs(ones - 5e4) / math.sqrt(5e4)) > 1e-5


@pytest.mark.parametrize("field", FIELDS)
def test_fields_out_of_range_are_refused(field):
    numbers(**{field: 2 ** RANGES[field] - 1})
    with pytest.raises(ValueError, match=field):
        numbers(**{field: -1})
    if RANGES[field] < 64:
        with pytest.raises(ValueError, match=field):
            numbers(**{field: [0, 2 ** RANGES[field]]})
    with pytest.raises(TypeError, match=field):
        numbers(**{field: 0.5})
