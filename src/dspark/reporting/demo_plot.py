"""Picture of a demo result: speeds, speed-up by domain, acceptance by position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dspark.artifacts import atomic_write_bytes
from dspark.reporting.style import OTHER, PLAIN, kind_colour, new_figure, png, tidy


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the fields of schema dspark.demo/1 into a PNG.

    Raises:
        ConfigError: without matplotlib.
        DataError: when the file cannot be written.
    """
    figure = new_figure(11, 3.4)
    speeds, domains, slots = figure.subplots(1, 3)
    _speeds(speeds, result)
    _domains(domains, result)
    _slots(slots, result)
    where = f"\n{result['machine']}, kernels: {result['kernels']}" if "machine" in result else ""
    figure.suptitle(
        f"{result['target']}, {result['dtype']}, {result['threads']} CPU threads, one user, "
        f"temperature {result['temperature']:g}: {result['prompts']} prompts, "
        f"{result['identical_texts']:.0%} of texts identical{where}",
        fontsize=10,
    )
    atomic_write_bytes(path, png(figure))


def _bars(axes: Any, names: list[str], values: list[float], colours: list[str], form: str) -> None:
    bars = axes.bar(names, values, color=colours, width=0.6)
    axes.bar_label(bars, [format(v, form) for v in values], fontsize=9, padding=2)
    axes.margins(y=0.15)


def _speeds(axes: Any, result: dict[str, Any]) -> None:
    names, values, colours = [], [], []
    if "transformers_tokens_per_s" in result:
        names.append("transformers\ngenerate")
        values.append(result["transformers_tokens_per_s"])
        colours.append(OTHER)
    names += ["this engine,\nplain", f"with the\n{result['drafter']} drafter"]
    values += [result["plain_tokens_per_s"], result["dspark_tokens_per_s"]]
    colours += [PLAIN, kind_colour(result["drafter"])]
    _bars(axes, names, values, colours, ".0f")
    tidy(axes, "Speed, prefill included", "tokens per second")


def _domains(axes: Any, result: dict[str, Any]) -> None:
    rows = result["domains"]
    colour = kind_colour(result["drafter"])
    names = [f"{n}\n(τ {row['accepted_length']:.2f})" for n, row in rows.items()]
    _bars(axes, names, [row["speedup"] for row in rows.values()], [colour] * len(rows), ".2f")
    axes.axhline(1, color=PLAIN, linewidth=1, linestyle="--")
    tidy(axes, "Speed-up over plain, by domain", "times")


def _slots(axes: Any, result: dict[str, Any]) -> None:
    values = result["accept_by_position"]
    axes.plot(range(1, len(values) + 1), values, marker="o", color=kind_colour(result["drafter"]))
    axes.set_ylim(0, 1)
    axes.set_xticks(range(1, len(values) + 1))
    axes.grid(axis="y", alpha=0.3)
    tidy(axes, "Accepted, given all before accepted", "share", "draft position")
