"""Studies of one thing that differs between drafters, the paper's Figures 3 and 4 among them.

As in `pictures`, each function gives the blocks of a page. A picture comes with a table of the
drafters behind it.
"""

from __future__ import annotations

from collections.abc import Callable

from dspark.reporting import series, tables
from dspark.reporting.evidence import LENGTH, STUDIES, Evidence, ends
from dspark.reporting.figures import Bar, Panel, draw_bars, draw_panels, kind_curves
from dspark.reporting.load import Results
from dspark.reporting.page import Block, Picture, numbered
from dspark.reporting.records import UNKNOWN, HeadCost
from dspark.reporting.series import Line, Point
from dspark.reporting.style import kind_colour
from dspark.reporting.tables import number

SHOWN = {*STUDIES, "threshold"}  # studies with a place of their own on the page


def depth(evidence: Evidence) -> list[Block]:
    """Figure 3: accepted_length by draft layers."""
    study = series.of_study(evidence.lines, "depth")
    some = evidence.pick(study)
    if not some:
        return [evidence.missing("No study of depth was measured", "depth", study)]
    curves = kind_curves(series.by_x(some, lambda line: line.shape.num_layers))
    panel = Panel("", "draft layers", LENGTH, curves, whole_x=True, dodge=True)
    caption = (
        f"accepted_length by the number of draft layers, mean over domains, at temperature "
        f"{some[0].temperature:g}; bars are 95 % intervals, set beside each other. From fewest "
        f"to most layers: "
        f"{ends(curves)}."
    )
    picture = Picture("depth.png", draw_panels([panel]), caption)
    return [picture, tables.study(some, "Drafters of the study of depth")]


def block_size(evidence: Evidence) -> list[Block]:
    """Figure 4: accepted_length by block size, and what the sequential head costs."""
    study = series.of_study(evidence.lines, "block_size")
    some = evidence.pick(study)
    lengths = series.by_x(some, lambda line: line.shape.block_size)
    costs = _head_costs(evidence.results)
    names = dict.fromkeys([*lengths, *costs])  # one name, one dash, in both panels
    panels, words, blocks = [], [], list[Block]()
    if lengths:
        curves = kind_curves({name: lengths.get(name, []) for name in names})
        xlabel = "block size, tokens"
        panels.append(Panel("Accepted", xlabel, LENGTH, curves, whole_x=True, dodge=True))
        words.append(
            f"accepted_length by block size, mean over domains, at temperature "
            f"{some[0].temperature:g}, with 95 % intervals set beside each other: {ends(curves)}."
        )
        blocks.append(tables.study(some, "Drafters of the study of block size"))
    else:
        blocks.append(evidence.missing("No study of block size was measured", "block_size", study))
    if costs:
        curves = kind_curves({name: costs.get(name, []) for name in names})
        ylabel = "sequential head, % of a round's time"
        panels.append(Panel("Cost", "block size, tokens", ylabel, curves, whole_x=True))
        words.append(
            f"The sequential head's share of a round, in %, from the smallest block to the "
            f"largest: {ends(curves)}."
        )
        blocks.append(tables.head_costs(evidence.results))
    else:
        what = "The cost of the sequential head was not measured"
        blocks.append(evidence.missing(what, "head_cost"))
    if panels:
        blocks.insert(0, Picture("block_size.png", draw_panels(panels), " ".join(words)))
    return blocks


def _head_costs(results: Results) -> dict[tuple[str, str], list[Point]]:
    """The head's share of a round in % by block size; heads are dspark's.

    Curves of several machines stay apart: a share of another machine's round is another number.
    """
    found = [(results.machine(name), record) for name, record in results.of(HeadCost)]
    several = len({machine for machine, _ in found}) > 1
    curves: dict[tuple[str, str], list[Point]] = {}
    for machine, record in found:
        for row in record.rows:
            head = f"{row.markov_head_type} head" if row.markov_head_type else "no head"
            label = f"dspark, {head}" + (f", {machine}" if several else "")
            point = (row.block_size, 100 * row.share, UNKNOWN)
            curves.setdefault(("dspark", label), []).append(point)
    return {name: sorted(points) for name, points in curves.items()}


def budget(evidence: Evidence) -> list[Block]:
    """accepted_length by how much of the training budget was used."""
    study = [line for line in series.of_study(evidence.lines, "budget") if _minutes(line)]
    some = evidence.pick(study)
    if not some:
        return [evidence.missing("No study of the training budget was measured", "budget", study)]
    curves = kind_curves(series.by_x(some, _minutes))
    panel = Panel("", "training, minutes", LENGTH, curves)
    shares = "; ".join(
        f"{curve.label} " + ", ".join(f"{p[1]:.2f} at {p[0] / last:.0%}" for p in curve.points)
        for curve in curves
        if (last := curve.points[-1][0])
    )
    caption = (
        f"accepted_length by training time, mean over domains, at temperature "
        f"{some[0].temperature:g}; bars are 95 % intervals. In shares of each longest training: "
        f"{shares}."
    )
    picture = Picture("budget.png", draw_panels([panel]), caption)
    return [picture, tables.study(some, "Drafters of the study of the training budget")]


def _minutes(line: Line) -> float | None:
    seconds = None if line.training is None else line.training.elapsed_s
    return None if seconds is None else seconds / 60


def others(evidence: Evidence) -> list[Block]:
    """The studies of head and vocabulary, and then those that the page has no figure for."""
    blocks = [
        *_bars(evidence, "head", "sequential head", "head.png", _head),
        *_bars(evidence, "vocabulary", "draft vocabulary", "vocabulary.png", _vocabulary),
    ]
    found = {line.study for line in evidence.lines if line.study and line.threshold is None}
    for place, study in enumerate(sorted(found - SHOWN), 1):
        file = numbered("study", place)  # a study's own name is free text, no file's
        blocks += _bars(evidence, study, study.replace("_", " "), file)
    return blocks


def _bars(
    evidence: Evidence,
    study: str,
    what: str,
    file: str,
    more: Callable[[Line], str] = lambda line: "",
) -> list[Block]:
    """A study's drafters as bars; `more` adds to their names."""
    measured = series.of_study(evidence.lines, study)
    some = evidence.pick(measured)
    if not some:
        return [evidence.missing(f"No study of the {what} was measured", study, measured)]
    bars = [
        Bar(label + more(line), line.accepted_length, line.interval, kind_colour(line.kind))
        for label, line in zip(series.labels(some), some, strict=True)
    ]
    values = "; ".join(f"{bar.label} {number(bar.value)}" for bar in bars)
    caption = (
        f"accepted_length by {what}, mean over domains, at temperature "
        f"{some[0].temperature:g}, with 95 % intervals: {values}."
    )
    picture = Picture(file, draw_bars(bars, LENGTH), caption)
    return [picture, tables.study(some, f"Drafters of the study of the {what}")]


def _head(line: Line) -> str:
    head = line.shape.markov_head_type
    if head is None:
        return " (no head)"
    return "" if head in line.drafter else f" ({head})"


def _vocabulary(line: Line) -> str:
    size = line.shape.draft_vocab_size
    return f" ({size:,d} tokens)" if size else " (all tokens)"
