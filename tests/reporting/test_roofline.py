"""The roofline's picture: what lines it draws, where the roofs meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspark.reporting import roofline
from dspark.reporting.style import new_figure
from dspark.reporting.system_records import Kernels
from system_files import SYSTEM

DATA: dict[str, Any] = SYSTEM["kernels.json"][1]
RECORD = Kernels.model_validate(DATA)


def test_picture(tmp_path: Path) -> None:
    roofline.draw(DATA, tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").read_bytes()[:4] == b"\x89PNG"


def test_memory_meets_arithmetic() -> None:
    axes = new_figure(4, 3).subplots()
    roofline._roofs(axes, RECORD, "bfloat16")
    roof, lower = axes.get_lines()
    assert list(roof.get_xdata())[1] == pytest.approx(500 / 20)
    assert roof.get_ydata()[-1] == 500
    assert set(lower.get_ydata()) == {100}
    assert axes.get_title() == "bfloat16: memory 20 GB/s, arithmetic 500 GFLOP/s"


def test_no_arithmetic_was_measured() -> None:
    axes = new_figure(4, 3).subplots()
    roofline._roofs(axes, RECORD.model_copy(update={"peaks": []}), "bfloat16")
    (roof,) = axes.get_lines()
    assert roof.get_ydata()[-1] == pytest.approx(20 * roof.get_xdata()[-1])


def test_levels_differ_in_more_than_colour() -> None:
    levels = ["torch", "avx2", "avx512", "avx512_bf16"]
    record = RECORD.model_copy(update={"levels": levels})
    styles = [roofline._style(record, level) for level in levels]
    for part in (0, 1):
        assert len({style[part] for style in styles}) == len(levels)
    assert styles[-1] == roofline._style(RECORD, "avx512_bf16")
