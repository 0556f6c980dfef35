"""`dspark report`: result files in, one page with its pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dspark.artifacts import atomic_write_bytes, atomic_write_text
from dspark.errors import ConfigError
from dspark.reporting import series
from dspark.reporting.evidence import Evidence
from dspark.reporting.load import load
from dspark.reporting.page import Picture, render
from dspark.reporting.sections import sections, targets

PAGE = "index.html"


def run(
    paths: Sequence[Path], out: Path, temperature: float | None = None
) -> tuple[Path, list[str]]:
    """Makes the page; nothing is written before all of it is there.

    Args:
        paths: result files, and folders that hold some.
        out: folder for `index.html` and the pictures; other files in it stay.
        temperature: the one figures show; unset takes 1, or else the highest of each figure.

    Returns:
        the page, and a note for each file that was left out.

    Raises:
        ConfigError: nothing was measured at that temperature, or matplotlib is missing.
        DataError: see `load`, or `out` cannot be written.
    """
    results = load(paths)
    lines = series.lines(results)
    there = series.temperatures(lines)
    if temperature is not None and lines and temperature not in there:
        raise ConfigError(
            f"Nothing was measured at temperature {temperature:g}",
            fix=f"Choose one of {', '.join(f'{t:g}' for t in there)}",
        )
    evidence = Evidence(results, lines, temperature)
    content = sections(evidence)
    page = render(" ".join(["dspark report:", ", ".join(targets(evidence))]), content)
    for section in content:
        for block in section.blocks:
            if isinstance(block, Picture):
                atomic_write_bytes(out / block.file, block.png)
    atomic_write_text(out / PAGE, page)
    return out / PAGE, results.notes
