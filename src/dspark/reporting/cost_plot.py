"""Picture of a cost table: the staircase of verification, and drafting beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dspark.artifacts import atomic_write_bytes
from dspark.reporting.style import PLAIN, kind_colour, new_figure, png, tidy
from dspark.tables.cost import CostTable, envelope

NARROW = 16  # factor between the ends of an axis that makes it worth a logarithmic scale


def draw(table: CostTable, path: Path) -> None:
    """Draw a cost table into a PNG file.

    Raises:
        ConfigError: without matplotlib.
        DataError: when the file cannot be written.
    """
    atomic_write_bytes(path, picture(table))


def picture(table: CostTable) -> bytes:
    """A cost table as a PNG.

    Raises:
        ConfigError: without matplotlib.
    """
    figure = new_figure(9, 3.4)
    steps, tokens = figure.subplots(1, 2)
    sizes = np.array([size for size, _ in table.verify])
    times = 1e3 * np.array([seconds for _, seconds in table.verify])
    curve = 1e3 * table.verify_s(int(sizes[-1]))
    steps.plot(sizes, times, "o-", color=kind_colour("dspark"), label="verify", markersize=4)
    steps.plot(envelope(curve), "--", color=PLAIN, linewidth=1, label="convex envelope")
    colour = kind_colour("dflash")
    for slots, points in table.short:
        requests, short = zip(*points, strict=True)
        steps.plot(requests, 1e3 * np.array(short), "-", color=colour, linewidth=0.8)
        steps.annotate(f"{slots}", (requests[-1], 1e3 * short[-1]), fontsize=7, color=colour)
    if table.draft:
        whole, drafts = zip(*table.draft, strict=True)
        label = "draft (over requests; thin: so many slots)"
        steps.plot(whole, 1e3 * np.array(drafts), "s-", color=colour, label=label, markersize=4)
    steps.legend(fontsize=8, frameon=False)
    tidy(steps, "time of a step", "milliseconds", "batch tokens")
    tokens.plot(sizes, 1e3 * sizes / times, "o-", color=kind_colour("dspark"), markersize=4)
    for axes in (steps, tokens):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        _vertical(axes)
    tidy(tokens, "tokens through the target", "tokens/s", "batch tokens")
    key = table.key
    figure.suptitle(
        f"{key.target}, {key.dtype}, {key.threads} threads, {table.context} positions of context, "
        f"{key.machine}",
        fontsize=9,
    )
    return png(figure)


def _vertical(axes: Any) -> None:
    """Equal steps are equal factors, or from zero where such a scale would show few ticks."""
    low, high = axes.dataLim.intervaly
    if high < NARROW * low:
        axes.set_ylim(0, 1.1 * high)
        return
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:,g}")
