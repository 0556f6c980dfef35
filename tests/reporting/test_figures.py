"""Pictures are drawn whatever is known of their data, without a warning."""

from __future__ import annotations

import math
import sys

import pytest
from matplotlib.figure import Figure

from dspark.errors import ConfigError
from dspark.reporting.figures import (
    Bar,
    Curve,
    Panel,
    _bar_intervals,
    _dodged,
    draw_bars,
    draw_panels,
    kind_curves,
)
from dspark.reporting.records import UNKNOWN
from dspark.reporting.series import Point
from dspark.reporting.style import KIND_COLOURS, kind_colour, kind_rank, ramp

NAN = math.nan


def is_png(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 2.0, (1.9, 2.2)), (2.0, 2.5, UNKNOWN), (3.0, NAN, UNKNOWN)],
        [(1.0, 2.0, (2.1, 2.2))],  # rounded to outside its own interval
        [(1.0, NAN, UNKNOWN)],
        [],
    ],
)
@pytest.mark.parametrize("band", [True, False])
def test_curves(points: list[Point], band: bool) -> None:
    curves = [Curve("a", points, "#000000"), Curve("b", [(1.0, 1.0, UNKNOWN)], "#0072B2")]
    for doubling in (False, True):
        panels = [Panel("t", "x", "y", curves, whole_x=True, doubling_x=doubling, band=band)]
        assert is_png(draw_panels(panels))


def test_dodged_curves_stand_around_their_true_x() -> None:
    points: list[Point] = [(1.0, 2.0, (1.9, 2.2)), (5.0, 2.5, (2.4, 2.6))]
    curves = _dodged([Curve(name, points, "#000000") for name in "abc"])
    left, middle, right = (curve.points for curve in curves)
    assert middle == points
    assert 1.0 - left[0][0] == pytest.approx(right[0][0] - 1.0)
    assert 0 < right[0][0] - 1.0 < 0.1
    assert [(y, ends) for _, y, ends in left] == [(y, ends) for _, y, ends in points]
    panel = Panel("t", "x", "y", curves, whole_x=True, dodge=True)
    assert is_png(draw_panels([panel]))
    assert _dodged([]) == []


def test_nothing_known_at_all() -> None:
    assert is_png(draw_panels([Panel("t", "x", "y", [Curve("a", [], "#000000")])]))
    assert is_png(draw_bars([Bar("a", NAN, UNKNOWN, "#000000")], "x"))


def test_only_bars_with_an_interval_have_a_mark_for_it() -> None:
    axes = Figure().subplots()
    bars = [Bar("a", 1.0, UNKNOWN, "#000000"), Bar("b", 2.0, (1.5, 2.6), "#000000")]
    _bar_intervals(axes, bars[:1])
    assert not axes.containers
    _bar_intervals(axes, bars)
    (drawn,) = axes.containers
    (lines,) = drawn[2]  # one interval, of the second bar
    assert [line.tolist() for line in lines.get_segments()] == [[[1.5, 1.0], [2.6, 1.0]]]


@pytest.mark.parametrize("name", [r"$\x$", "_a", "<b>", ""])
def test_names_are_no_formulas(name: str) -> None:
    curve = Curve(name, [(1.0, 1.0, UNKNOWN)], "#000000")
    assert is_png(draw_panels([Panel(name, "x", "y", [curve])]))
    assert is_png(draw_bars([Bar(name, 1.0, (0.9, 1.2), "#000000")], "x"))


def test_every_panel_with_a_legend_of_its_own() -> None:
    points = [(0.1, 0.2, UNKNOWN), (0.9, 0.8, UNKNOWN)]
    curves = [Curve(f"slot {k}", points, c, weights=[5, 0]) for k, c in enumerate(ramp(16))]
    panel = Panel("t", "x", "y", curves, share=True, diagonal=True, own_legend=True)
    assert is_png(draw_panels([panel, panel]))


def test_a_kind_keeps_its_colour_and_its_curves_differ_in_dashes() -> None:
    names = [("dspark", "a"), ("dflash", "b"), ("dspark", "c"), ("new", "d")]
    curves = kind_curves({name: [] for name in names})
    assert [c.colour for c in curves] == [kind_colour(kind) for kind, _ in names]
    assert curves[0].dash != curves[2].dash
    assert curves[0].dash == curves[1].dash
    assert len(set(KIND_COLOURS.values())) == len(KIND_COLOURS)
    assert kind_rank("new") > max(map(kind_rank, KIND_COLOURS))


def test_ramp() -> None:
    assert ramp(0) == []
    assert ramp(1) == ["#440154"]
    assert ramp(4) == ["#440154", "#31688e", "#35b779", "#b8c920"]
    assert len(set(ramp(16))) == 16


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'dspark\[report\]'"):
        draw_bars([], "x")
