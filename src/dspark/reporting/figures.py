"""Drawing: panels of curves with intervals, and bars. What they mean is `sections`' business."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dspark.reporting.series import Point
from dspark.reporting.style import (
    DASHES,
    KIND_MARKERS,
    PLAIN,
    kind_colour,
    new_figure,
    plain,
    png,
    tidy,
)

WIDTH = 9.0  # inches: on a page 900 pixels wide, letters come out as large as the text's

DODGE = 0.012  # of a panel's width, from one curve to the next


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line with its points.

    Args:
        weights: how much stands behind each point; drawn as the size of its marker.
    """

    label: str
    points: list[Point]
    colour: str
    marker: str = "o"
    dash: str = "-"
    weights: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Args:
        share: the vertical axis is a share, shown from 0 to 1 whole.
        diagonal: both axes are shares, with a dashed line where they are equal.
        whole_x: ticks stand at the points' x and nowhere else.
        doubling_x: equal steps of the horizontal axis are equal factors.
        band: intervals are shaded bands, else bars at the points.
        own_legend: below this panel, in place of one legend for the figure.
        dodge: curves stand a little beside each other, so that intervals at one x stay readable.
    """

    title: str
    xlabel: str
    ylabel: str
    curves: list[Curve]
    share: bool = False
    diagonal: bool = False
    whole_x: bool = False
    doubling_x: bool = False
    band: bool = False
    own_legend: bool = False
    dodge: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A named value with its 95 % interval."""

    label: str
    value: float
    interval: tuple[float, float]
    colour: str


def kind_curves(points: dict[tuple[str, str], list[Point]]) -> list[Curve]:
    """Curves in the colours of their kinds, from (kind, label) to points.

    Several of one kind differ in their dashes.
    """
    curves, used = [], dict.fromkeys((kind for kind, _ in points), 0)
    for (kind, label), values in points.items():
        dash = DASHES[used[kind] % len(DASHES)]
        used[kind] += 1
        marker = KIND_MARKERS.get(kind, "x")
        curves.append(Curve(label, values, kind_colour(kind), marker, dash))
    return curves


def draw_panels(panels: Sequence[Panel]) -> bytes:
    """A row of panels as a PNG; below it one legend for all, each name once, or one for each."""
    count, own = len(panels), panels[0].own_legend
    width, longest = WIDTH if count > 1 else 0.7 * WIDTH, max(len(p.curves) for p in panels)
    figure = new_figure(width, 4.0 + 0.1 * longest if own else 3.7)
    if own:
        for part, panel in zip(figure.subfigures(1, count, squeeze=False)[0], panels, strict=True):
            _legend(part, _draw(part.subplots(), panel), 2)
        return png(figure)
    handles: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, count, squeeze=False)[0], panels, strict=True):
        for name, handle in _draw(axes, panel).items():
            handles.setdefault(name, handle)
    _legend(figure, handles, 4 if count > 1 else 2)
    return png(figure)


def _legend(part: Any, handles: dict[str, Any], columns: int) -> None:
    if not handles:
        return
    part.legend(
        handles.values(),
        map(plain, handles),
        loc="outside lower center",
        ncols=min(columns, len(handles)),
        fontsize=9,
        frameon=False,
        handlelength=3,
    )


def _draw(axes: Any, panel: Panel) -> dict[str, Any]:
    """Draws one panel; returns what its legend shows, by name."""
    known = [c for c in panel.curves if not all(math.isnan(y) for _, y, _ in c.points)]
    known = _dodged(known) if panel.dodge else known
    handles = {curve.label: _curve(axes, curve, panel.band) for curve in known}
    tidy(axes, panel.title, panel.ylabel, panel.xlabel)
    axes.grid(axis="y", alpha=0.3)
    if panel.share:
        axes.set_ylim(0, 1.02)
    if panel.diagonal:
        axes.plot([0, 1], [0, 1], color=PLAIN, linestyle="--", linewidth=1)
        axes.set_xlim(0, 1.02)
    if panel.doubling_x:
        axes.set_xscale("log", base=2)
    if panel.whole_x:
        ticks = sorted({point[0] for curve in panel.curves for point in curve.points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    return handles


def _dodged(curves: Sequence[Curve]) -> list[Curve]:
    """The curves, each moved by a fixed share of the whole width, around their true x."""
    places = [x for curve in curves for x, _, _ in curve.points]
    step = DODGE * (max(places, default=0.0) - min(places, default=0.0))
    moved = []
    for number, curve in enumerate(curves):
        by = step * (number - (len(curves) - 1) / 2)
        moved.append(replace(curve, points=[(x + by, y, ends) for x, y, ends in curve.points]))
    return moved


def _curve(axes: Any, curve: Curve, band: bool) -> Any:
    x, y = [p[0] for p in curve.points], [p[1] for p in curve.points]
    low, high = [p[2][0] for p in curve.points], [p[2][1] for p in curve.points]
    style = {"color": curve.colour, "linestyle": curve.dash, "linewidth": 1.6, "clip_on": False}
    if curve.weights is not None:
        top = max(curve.weights, default=0) or 1
        sizes = [4 + 26 * weight / top for weight in curve.weights]
        axes.scatter(x, y, s=sizes, color=curve.colour, linewidths=0, zorder=3, clip_on=False)
        return axes.plot(x, y, **style | {"linewidth": 1.0})[0]
    if band and len(x) > 1:
        axes.fill_between(x, low, high, color=curve.colour, alpha=0.15, linewidth=0)
    elif not all(map(math.isnan, low)):
        axes.errorbar(x, y, yerr=_errors(y, low, high), fmt="none", ecolor=curve.colour, capsize=3)
    return axes.plot(x, y, marker=curve.marker, markersize=5, **style)[0]


def _errors(y: list[float], low: list[float], high: list[float]) -> list[list[float]]:
    """Lengths of the interval below and above each point; 0 where it is not known."""
    return [
        [max(0.0, at - end) for at, end in zip(y, low, strict=True)],
        [max(0.0, end - at) for at, end in zip(y, high, strict=True)],
    ]


def _bar_intervals(axes: Any, bars: Sequence[Bar]) -> None:
    """Intervals of those bars that have one; the others get no mark, which would read as none."""
    known = [(n, bar) for n, bar in enumerate(bars) if not any(map(math.isnan, bar.interval))]
    if known:
        values = [bar.value for _, bar in known]
        low, high = [bar.interval[0] for _, bar in known], [bar.interval[1] for _, bar in known]
        errors, places = _errors(values, low, high), [n for n, _ in known]
        axes.errorbar(values, places, xerr=errors, fmt="none", ecolor="#222222", capsize=3)


def draw_bars(bars: Sequence[Bar], xlabel: str) -> bytes:
    """Lying bars from zero, with intervals, as a PNG; the first bar on top."""
    figure = new_figure(0.8 * WIDTH, 1.1 + 0.42 * len(bars))
    axes = figure.subplots()
    values = [bar.value for bar in bars]
    places = range(len(bars))
    axes.barh(places, values, color=[bar.colour for bar in bars], height=0.6)
    _bar_intervals(axes, bars)
    for place, bar in zip(places, bars, strict=True):
        if not math.isnan(bar.value):
            end = bar.value if math.isnan(bar.interval[1]) else max(bar.interval[1], bar.value)
            axes.annotate(
                f"{bar.value:.2f}",
                (end, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    axes.set_yticks(places, [plain(bar.label) for bar in bars])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    tidy(axes, "", "", xlabel)
    return png(figure)
