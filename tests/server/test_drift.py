"""Drift: what the window sees, what verify lengths do not do to it, and the refit."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.calibration.rounds import outcomes
from dspark.core import RULES, RoundRecord, SamplingParams
from dspark.server.drift import Drift
from dspark.tables.calibration import CalibrationEntry, CalibrationTable

K = 3
PARAMS = SamplingParams(temperature=1.0)


def sharper(c: float, temperature: float) -> float:
    """σ(z / T) of a confidence σ(z)."""
    return 1 / (1 + math.exp(-math.log(c / (1 - c)) / temperature))


def rounds(count: int, truth: float, verify: bool = False, seed: int = 0) -> list[RoundRecord]:
    """Rounds whose slots really pass with σ(z / truth) where the drafter says σ(z).

    Args:
        verify: a policy verifies the slots that look good; else all of them.
    """
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        sure = tuple(draw.uniform(0.2, 0.95) for _ in range(K))
        survival = [math.prod(sure[: k + 1]) for k in range(K)]
        verified = sum(a > 0.3 for a in survival) if verify else K
        passes = [draw.random() < sharper(c, truth) for c in sure]
        accepted = next((k for k, yes in enumerate(passes[:verified]) if not yes), verified)
        made.append(RoundRecord(K, verified, accepted, accepted + 1, False, sure))
    return made


def filled(records: list[RoundRecord], window: int = 4000, room: int = 100) -> Drift:
    drift = Drift(K, window)
    for record in records:
        drift.add(record, PARAMS, room)
    return drift


def test_honest_confidences_show_no_drift() -> None:
    report = filled(rounds(4000, 1.0)).report(None)
    assert report.rounds == [4000] * K
    assert report.mean_ece < 0.02
    assert report.predicted == pytest.approx(report.observed, abs=0.02)
    assert 1 > report.observed[0] > report.observed[1] > report.observed[2] > 0


def test_verify_lengths_do_not_bend_the_comparison() -> None:
    """Counting rejections behind the verify length would: they come without acceptances."""
    records = rounds(4000, 1.0, verify=True)
    report = filled(records).report(None)
    assert report.rounds[0] > report.rounds[1] > report.rounds[2] > 400
    assert report.mean_ece < 0.03
    assert report.predicted == pytest.approx(report.observed, abs=0.03)


def test_confidences_that_claim_too_much_are_seen() -> None:
    report = filled(rounds(4000, 3.0)).report(None)
    assert report.mean_ece > 0.05
    assert report.predicted[2] != pytest.approx(report.observed[2], abs=0.02)


def test_the_table_is_what_predicts() -> None:
    entry = CalibrationEntry(1.0, 1.0, 0, (3.0,) * K, (0.5,) * K)
    table = CalibrationTable("", "", K, "", (entry,))
    drift = filled(rounds(4000, 3.0))
    assert drift.report(table).mean_ece < 0.02 < 0.05 < drift.report(None).mean_ece


def test_the_window_slides() -> None:
    drift = filled(rounds(1000, 3.0) + rounds(1000, 1.0), window=1000)
    assert drift.seen == 2000
    assert drift.report(None).rounds == [1000] * K
    assert drift.report(None).mean_ece < 0.04


def test_rounds_that_tell_nothing() -> None:
    drift = Drift(K, 100)
    drift.add(RoundRecord(0, 0, 0, 1), PARAMS, 9)
    drift.add(RoundRecord(K, K, 1, 2, False, (0.5, float("nan"), 0.5)), PARAMS, 9)
    report = drift.report(None)
    assert drift.seen == 0
    assert report.rounds == [0] * K
    assert all(math.isnan(x) for x in (*report.predicted, *report.observed, report.mean_ece))


def test_outcomes_that_are_not_known() -> None:
    sure = (0.5, 0.5, 0.5)
    drift = Drift(K, 100)
    drift.add(RoundRecord(K, K, 1, 1, True, sure), PARAMS, 9)  # stopped behind the first
    assert drift.report(None).rounds == [1, 0, 0]
    drift.add(RoundRecord(K, K, 0, 1, False, sure), PARAMS, 2)  # room for two
    assert drift.report(None).rounds == [2, 1, 0]
    drift.add(RoundRecord(K, 1, 0, 1, False, sure), PARAMS, 9)  # one was verified
    assert drift.report(None).rounds == [3, 1, 0]


@given(st.data(), st.integers(0, K), st.booleans(), st.integers(1, K + 2))
def test_rounds_tell_what_calibration_reads_in_them(
    data: st.DataObject, verified: int, drawn: bool, room: int
) -> None:
    accepted = data.draw(st.integers(0, min(verified, room)))
    committed = accepted + (drawn and accepted < room)
    record = RoundRecord(K, verified, accepted, committed, not drawn, (0.5,) * K)
    drift = Drift(K, 10)
    drift.add(record, PARAMS, room)
    report = drift.report(None)
    accepted_NK, valid_NK = outcomes([record], K, room + 1)
    told_K = valid_NK[0] & (np.arange(1, K + 1) <= verified)
    assert report.rounds == told_K.astype(int).tolist()
    said = [observed for observed, told in zip(report.observed, told_K, strict=True) if told]
    assert said == accepted_NK[0][told_K].astype(float).tolist()


def test_a_refit_finds_the_temperatures() -> None:
    drift = filled(rounds(4000, 2.5))
    refit = drift.refit(None)
    assert refit is not None
    assert refit.entry.key == (1.0, 1.0, 0)
    assert refit.entry.rounds == 2000
    assert refit.after < 0.03 < refit.before
    assert all(temperature > 1.5 for temperature in refit.entry.temperatures)
    assert refit.entry.mean_survival == pytest.approx(drift.report(None).observed, abs=0.05)


def test_a_slot_that_is_hardly_verified_keeps_its_temperature() -> None:
    entry = CalibrationEntry(1.0, 1.0, 0, (1.0, 1.0, 1.7), (0.5,) * K)
    short = [
        RoundRecord(K, 2, min(r.accepted, 2), min(r.accepted, 2) + 1, False, r.confidence)
        for r in rounds(2000, 2.5)
    ]
    refit = filled(short).refit(CalibrationTable("", "", K, "", (entry,)))
    assert refit is not None
    assert refit.entry.temperatures[2] == pytest.approx(1.7)
    assert all(temperature > 1.3 for temperature in refit.entry.temperatures[:2])


def test_a_refit_is_for_the_rule_that_its_rounds_were_judged_by() -> None:
    for rule in RULES:
        drift = Drift(K, 4000, rule)
        for record in rounds(4000, 2.5):
            drift.add(record, SamplingParams(temperature=1.0), 100)
        refit = drift.refit(None)
        assert refit is not None
        assert refit.entry.verification == rule


def test_a_refit_that_does_not_help_is_none() -> None:
    entry = CalibrationEntry(1.0, 1.0, 0, (2.5,) * K, (0.5,) * K)
    table = CalibrationTable("", "", K, "", (entry,))
    drift = filled(rounds(400, 2.5, seed=3))
    refit = drift.refit(table)
    assert refit is None or refit.after < refit.before
