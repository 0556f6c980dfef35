"""Which entry of a calibration table stands in for a way of sampling that has none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dspark.tables.calibration import CalibrationEntry, CalibrationTable

GREEDY, HOT = (
    CalibrationEntry(temperature, 1.0, 0, (1.0, 1.0), (0.5, 0.3)) for temperature in (0.0, 1.0)
)


@pytest.mark.parametrize(
    ("temperature", "informed", "expected"),
    [
        (0.0, False, GREEDY),
        (0.3, False, GREEDY),
        (0.7, False, HOT),
        (0.0, True, GREEDY),
        (0.3, True, HOT),  # the head that speaks above 0 made no greedy entry
        (1.5, True, HOT),
    ],
)
def test_the_nearest_entry_of_the_same_head(
    temperature: float, informed: bool, expected: CalibrationEntry
) -> None:
    head = "ab" * 32 if informed else ""
    table = CalibrationTable("", "", 2, "", (GREEDY, replace(HOT, confidence=head)))
    found = table.nearest((temperature, 1.0, 0))
    assert found is not None
    assert found.temperature == expected.temperature


def test_some_entry_is_better_than_none() -> None:
    table = CalibrationTable("", "", 2, "", (replace(HOT, confidence="ab" * 32),))
    assert table.nearest((0.0, 1.0, 0)) == table.entries[0]
    assert CalibrationTable("", "", 2, "").nearest((0.0, 1.0, 0)) is None
