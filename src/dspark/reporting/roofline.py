"""Rooflines: how fast kernel levels multiply, beside what memory and arithmetic allow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspark.artifacts import atomic_write_bytes
from dspark.reporting.style import PLAIN, new_figure, png, tidy
from dspark.reporting.system_records import Kernels

INK = "#222222"
# Colour, marker and dash of a level by its place: ours from the lowest on, the best one, PyTorch.
# Okabe and Ito's colours; markers and dashes tell them apart where all is grey.
STYLES = (("#E69F00", "s", ":"), ("#009E73", "^", "-."), ("#CC79A7", "D", "--"))
BEST = ("#0072B2", "o", "-")
TORCH = (PLAIN, "x", "-")


def check() -> None:
    """Refuses to draw before anything is measured.

    Raises:
        ConfigError: without matplotlib.
    """
    new_figure(1, 1)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw the content of a dspark.kernels/1 file into a PNG file.

    Raises:
        ConfigError: without matplotlib.
        DataError: when the file cannot be written.
    """
    atomic_write_bytes(path, picture(Kernels.model_validate(dict(found))))


def picture(record: Kernels) -> bytes:
    """The rooflines of a record as a PNG, one panel a number type.

    Raises:
        ConfigError: without matplotlib.
    """
    dtypes = list(dict.fromkeys(row.dtype for row in record.products))
    figure = new_figure(4.6 * max(len(dtypes), 1), 4.2)
    panels = figure.subplots(1, len(dtypes), squeeze=False)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        _roofs(axes, record, dtype)
        for level in dict.fromkeys(row.level for row in record.products):
            _level(axes, record, dtype, level)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(alpha=0.25)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.suptitle(f"matrix products of {record.target}, {record.threads} threads", fontsize=10)
    return png(figure)


def _roofs(axes: Any, record: Kernels, dtype: str) -> None:
    """What memory allows, up to the highest arithmetic; lower levels' arithmetic as thin lines."""
    places = [row.flop_per_byte for row in record.products if row.dtype == dtype]
    low, high = min(places) / 1.4, max(places) * 1.4
    peaks = {peak.level: peak.gflop_s for peak in record.peaks if peak.dtype == dtype}
    top, rate = max(peaks.values(), default=record.read_gb_s * high), record.read_gb_s
    ridge = min(max(top / rate, low), high)
    axes.plot(
        [low, ridge, high],
        [rate * low, min(top, rate * ridge), min(top, rate * high)],
        color=INK,
        linewidth=2,
        label="memory, then arithmetic",
    )
    for level, peak in peaks.items():
        if peak < 0.95 * top:
            start = max(peak / rate, low)
            colour, _, dash = _style(record, level)
            axes.plot([start, high], [peak, peak], color=colour, linestyle=dash, linewidth=1)
    title = f"{dtype}: memory {rate:.0f} GB/s"
    if peaks:
        title += f", arithmetic {top:,.0f} GFLOP/s"
    tidy(axes, title, "GFLOP/s", "operations for each byte of weights")


def _level(axes: Any, record: Kernels, dtype: str, level: str) -> None:
    rows = [row for row in record.products if (row.dtype, row.level) == (dtype, level)]
    rows.sort(key=lambda row: row.rows)
    colour, marker, dash = _style(record, level)
    axes.plot(
        [row.flop_per_byte for row in rows],
        [row.gflop_s for row in rows],
        color=colour,
        marker=marker,
        linestyle=dash,
        linewidth=1.4,
        markersize=5,
        label="PyTorch" if level == "torch" else level,
    )


def _style(record: Kernels, level: str) -> tuple[str, str, str]:
    """Colour, marker and dash of a level; the best of ours looks the same in every picture."""
    ours = [name for name in record.levels if name != "torch"]
    if level == "torch":
        return TORCH
    if level not in ours or level == ours[-1]:
        return BEST
    return STYLES[ours.index(level) % len(STYLES)]
