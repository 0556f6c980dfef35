"""The result files on confidences, as their schemas say."""

from __future__ import annotations

import math

from dspark.reporting.records import Number, Record


class Reliability(Record):
    """Points of a reliability curve: predicted and observed share, and rounds, by bin."""

    predicted: list[Number]
    observed: list[Number]
    count: list[int]


class Position(Record):
    """Calibration of one draft slot."""

    k: int
    rounds: int
    base_rate: Number
    ece_before: Number
    ece_after: Number
    auroc: Number
    auroc_true: Number = math.nan
    brier_before: Number
    brier_after: Number
    noise_floor: Number
    temperature: Number
    curve_before: Reliability
    curve_after: Reliability


class CalibrationCheck(Record):
    """Schema dspark.calibration_check/1."""

    rounds: int
    fit_rounds: int
    ece_before_mean: Number
    ece_after_mean: Number
    auroc_mean: Number
    auroc_true_mean: Number = math.nan
    noise_floor_mean: Number
    positions: list[Position]


class HeadPosition(Record):
    """How well two confidence heads tell accepted prefixes of one length."""

    k: int
    rounds: int
    base_rate: Number
    auroc_linear: Number
    auroc: Number


class ConfidenceFit(Record):
    """Schema dspark.confidence_fit/1."""

    temperature: Number
    rounds: int
    fit_rounds: int
    auroc_linear_mean: Number
    auroc_mean: Number
    positions: list[HeadPosition]
