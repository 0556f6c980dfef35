"""The cost table's picture: readable axes for steep and for flat staircases."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark.reporting.cost_plot import _vertical, draw, picture
from dspark.reporting.style import new_figure
from dspark.tables.cost import CostKey, CostTable, Points

KEY = CostKey("Example GPU", 2, "tiny-target", "bfloat16", "")


@pytest.mark.parametrize("draft", [(), ((1, 0.001), (8, 0.002))])
def test_picture(tmp_path: Path, draft: Points) -> None:
    table = CostTable(KEY, ((1, 0.002), (8, 0.0021), (64, 0.09)), draft, 256)
    draw(table, tmp_path / "cost.png")
    assert picture(table)[:4] == (tmp_path / "cost.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("high", "scale"), [(2.2, "linear"), (200.0, "log")])
def test_a_flat_staircase_has_ticks_too(high: float, scale: str) -> None:
    axes = new_figure(4, 3).subplots()
    axes.plot([1, 8], [2.1, high])
    _vertical(axes)
    assert axes.get_yscale() == scale
    low, top = axes.get_ylim()
    assert len([tick for tick in axes.get_yticks() if low <= tick <= top]) > 2
