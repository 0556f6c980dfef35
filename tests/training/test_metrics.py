"""What a step measures: estimates by hand, sums that survive being written down."""

from __future__ import annotations

import json
from itertools import count

import pytest
import torch
from torch import Tensor

from dspark.maths.losses import DraftLoss
from dspark.training import metrics
from dspark.training.metrics import Meter, PhaseTimer, expected_accepted_length


def loss(overlap: Tensor, total: float = 1.0) -> DraftLoss:
    return DraftLoss(torch.tensor(total), 2 * total, 3 * total, 4 * total, overlap)


OVERLAP = torch.tensor([[0.5, 0.5], [1.0, 0.25], [0.9, 0.0]])
VALID = torch.tensor([[True, True], [True, True], [True, False]])


def test_expected_accepted_length_by_hand() -> None:
    total, blocks = expected_accepted_length(OVERLAP, VALID)
    # 1 + 0.5 + 0.25 and 1 + 1 + 0.25; the third block is cut and does not count.
    assert blocks == 2
    assert total == pytest.approx(1.75 + 2.25)
    assert expected_accepted_length(OVERLAP, torch.zeros_like(VALID)) == (0.0, 0)


def test_perfect_and_hopeless_drafts() -> None:
    valid = torch.ones(4, 7, dtype=torch.bool)
    assert expected_accepted_length(torch.ones(4, 7), valid) == (32.0, 4)
    assert expected_accepted_length(torch.zeros(4, 7), valid) == (4.0, 4)


def test_summary() -> None:
    meter = Meter()
    meter.add(loss(OVERLAP, 1.0), VALID)
    meter.add(loss(OVERLAP, 2.0), VALID)
    meter.spend(10)
    found = meter.summary()
    assert found["loss"] == 1.5
    assert found["ce"] == 3.0
    assert found["tv"] == 4.5
    assert found["bce"] == 6.0
    assert found["acceptance"] == [0.8, 0.375]  # invalid slots are left out
    assert found["accepted_length"] == 2.0
    assert found["anchors_per_s"] == pytest.approx(0.6, abs=0.05)


def test_only_steps_count_as_time() -> None:
    meter = Meter()
    meter.add(loss(OVERLAP), VALID)
    meter.spend(10)
    again = Meter.restored(meter.state())
    assert meter.summary()["anchors_per_s"] == again.summary()["anchors_per_s"] == 0.3


def test_there_is_no_rate_over_no_time() -> None:
    meter = Meter()
    meter.add(loss(OVERLAP), VALID)
    assert meter.summary()["anchors_per_s"] is None


def test_a_slot_without_labels_is_no_division_by_zero() -> None:
    meter = Meter()
    meter.add(loss(OVERLAP), torch.tensor([[True, False]] * 3))
    assert meter.summary()["acceptance"] == [0.8, 0.0]


def test_a_meter_goes_on_after_json() -> None:
    torch.manual_seed(0)
    batches = [torch.rand(5, 3) for _ in range(4)]
    valid = torch.ones(5, 3, dtype=torch.bool)
    through, first = Meter(), Meter()
    for n, overlap in enumerate(batches):
        through.add(loss(overlap, 0.1 * n), valid)
    for n, overlap in enumerate(batches[:2]):
        first.add(loss(overlap, 0.1 * n), valid)
    second = Meter.restored(json.loads(json.dumps(first.state())))
    for n, overlap in enumerate(batches[2:], 2):
        second.add(loss(overlap, 0.1 * n), valid)
    a, b = through.summary(), second.summary()
    assert a | {"anchors_per_s": 0} == b | {"anchors_per_s": 0}
    assert Meter.restored(json.loads(json.dumps(Meter().state()))).steps == 0


def test_phases_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(seconds))
    timer = PhaseTimer()
    for _ in range(2):
        with timer.phase("a"):
            pass
    with timer.phase("b"):
        pass
    assert timer.seconds == {"a": 2, "b": 1}


def test_meters_of_several_processes_are_one() -> None:
    """Two processes with the halves of two steps, and a third that had nothing."""
    whole, halves = Meter(), [Meter(), Meter(), Meter()]
    for step in range(2):
        for half, rows in zip(halves, ([0, 1], [2]), strict=False):
            half.add(loss(OVERLAP[rows], 1.0 + step), VALID[rows], steps=0)
        for half in halves:
            half.steps += 1
        whole.add(loss(OVERLAP, 2 * (1.0 + step)), VALID)
    merged = Meter.merged([half.state() for half in halves])
    assert merged.steps == 2
    assert merged.anchors == whole.anchors == 6
    mine, theirs = merged.summary(), whole.summary()
    del mine["anchors_per_s"], theirs["anchors_per_s"]
    assert mine == theirs
    alone = Meter.merged([halves[2].state(), halves[0].state()])  # the first may have nothing
    assert alone.anchors == 4
    assert alone.position_sum is not None
