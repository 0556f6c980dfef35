"""How every picture looks: one palette, one size of letters, one way to become a PNG."""

from __future__ import annotations

import io
from typing import Any

from dspark.errors import ConfigError

# Okabe and Ito's colours, which colour-blind readers can tell apart. A drafter's kind keeps its
# colour and marker in every picture; the order is the one of all tables and legends.
KIND_COLOURS = {"mtp": "#CC79A7", "eagle3": "#009E73", "dflash": "#E69F00", "dspark": "#0072B2"}
KIND_MARKERS = {"mtp": "D", "eagle3": "^", "dflash": "s", "dspark": "o"}
DOMAIN_COLOURS = {"math": "#D55E00", "code": "#56B4E9", "chat": "#4D4D4D"}
PLAIN, OTHER = "#8a8f98", "#b9bdc4"
DASHES = ("-", "--", ":", "-.")
DPI = 200


def kind_colour(kind: str) -> str:
    """The colour of a drafter's kind; grey for one that has none."""
    return KIND_COLOURS.get(kind, PLAIN)


def kind_rank(kind: str) -> int:
    """Place of a drafter's kind in tables and legends; unknown kinds come last."""
    return list(KIND_COLOURS).index(kind) if kind in KIND_COLOURS else len(KIND_COLOURS)


def ramp(count: int) -> list[str]:
    """Colours from dark violet to light green, for things that have an order."""
    ends = [tuple(bytes.fromhex(colour)) for colour in ("440154", "31688E", "35B779", "B8C920")]
    colours = []
    for i in range(count):
        at = i / max(count - 1, 1) * (len(ends) - 1)
        left = min(int(at), len(ends) - 2)
        mixed = (
            round(a + (b - a) * (at - left))
            for a, b in zip(ends[left], ends[left + 1], strict=True)
        )
        colours.append("#" + bytes(mixed).hex())
    return colours


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, sizes in inches.

    Raises:
        ConfigError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("Pictures need matplotlib", fix="pip install 'dspark[report]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str) -> str:
    """The text as it stands: between two dollar signs matplotlib would read formulas."""
    return text.replace("$", r"\$")


def tidy(axes: Any, title: str, ylabel: str, xlabel: str = "") -> None:
    """Title, axis labels and sizes that all pictures share."""
    axes.set_title(plain(title), fontsize=10)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def png(figure: Any) -> bytes:
    """The figure as the bytes of a PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    return picture.getvalue()
