"""Each of the paper's figures from what was measured: its data, its drawing, its caption.

Every function gives the blocks of a page: the picture, or what is missing and which command
makes it. Captions are worded from the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePosixPath

from dspark.reporting import series
from dspark.reporting.calibration_records import CalibrationCheck
from dspark.reporting.evidence import COMMANDS, LENGTH, Evidence, ends
from dspark.reporting.figures import Curve, Panel, draw_panels, kind_curves
from dspark.reporting.page import Block, Missing, Picture
from dspark.reporting.records import UNKNOWN
from dspark.reporting.series import Line, Point
from dspark.reporting.style import DASHES, DOMAIN_COLOURS, KIND_MARKERS, PLAIN, ramp
from dspark.reporting.tables import number

FEW = 0.001  # share of the rounds below which a bin says nothing


def positions(evidence: Evidence) -> list[Block]:
    """Figure 2: conditional acceptance by slot, one panel a domain."""
    main = series.of_study(evidence.lines, None)
    some = evidence.pick(main)
    if not some:
        return [evidence.missing("No acceptance by position was measured", "main", main)]
    names = list(zip((line.kind for line in some), series.labels(some), strict=True))
    panels = list[Panel]()
    for domain in series.domains(some):
        rows = [[row for row in line.rows if row.domain == domain] for line in some]
        points = dict(zip(names, map(series.acceptance_by_position, rows), strict=True))
        curves = kind_curves(points)
        ylabel = "" if panels else "accepted, given all before it were (share)"
        panel = Panel(domain, "draft slot", ylabel, curves, share=True, whole_x=True, band=True)
        panels.append(panel)
    caption = (
        f"Share of rounds in which a slot's token is accepted once all before it were, at "
        f"temperature {some[0].temperature:g}, with 95 % intervals over prompts; slots that fewer "
        f"than {series.MIN_ROUNDS} rounds of a domain reached are left out. From the first slot "
        f"to the last that all domains have, mean over domains: {ends(_over_panels(panels))}."
    )
    return [Picture("acceptance_by_position.png", draw_panels(panels), caption)]


def _over_panels(panels: Sequence[Panel]) -> list[Curve]:
    """The mean of the panels' curves of one name, for the slots that all of them have."""
    by_name: dict[str, dict[float, list[float]]] = {}
    for panel in panels:
        for curve in panel.curves:
            for x, y, _ in curve.points:
                by_name.setdefault(curve.label, {}).setdefault(x, []).append(y)
    curves = []
    for label, heights in by_name.items():
        most = max(map(len, heights.values()))
        whole = [(x, series.mean(ys), UNKNOWN) for x, ys in heights.items() if len(ys) == most]
        curves.append(Curve(label, sorted(whole), ""))
    return curves


def thresholds(evidence: Evidence) -> list[Block]:
    """Figure 5: what a static confidence threshold does, by domain."""
    swept = [line for line in evidence.lines if line.threshold is not None]
    some = evidence.pick(swept)
    if not some:
        return [evidence.missing("No threshold sweep was measured", "threshold", swept)]
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in sorted(some, key=lambda line: line.threshold or 0.0):
        groups.setdefault((line.drafter, line.file), []).append(line)
    rates, lengths = [], []
    for place, ((drafter, _), group) in enumerate(groups.items()):
        for domain in series.domains(group):
            label = domain if len(groups) == 1 else f"{domain}, {drafter}"
            colour = DOMAIN_COLOURS.get(domain, PLAIN)
            dash = DASHES[place % len(DASHES)]
            points = _sweep(group, domain)
            rates.append(Curve(label, points[0], colour, dash=dash))
            lengths.append(Curve(label, points[1], colour, dash=dash))
    xlabel = "confidence threshold"
    panels = [
        Panel("Accepted of the verified", xlabel, "share of draft tokens", rates, share=True),
        Panel("Accepted length", xlabel, LENGTH, lengths),
    ]
    caption = (
        f"A draft is cut before the first slot whose confidence is below the threshold; "
        f"temperature {some[0].temperature:g}. From the lowest threshold to the highest, accepted "
        f"share of the verified draft tokens: {ends(rates, '.1%')}; accepted_length: "
        f"{ends(lengths)}."
    )
    return [Picture("thresholds.png", draw_panels(panels), caption)]


def _sweep(group: Sequence[Line], domain: str) -> tuple[list[Point], list[Point]]:
    """(threshold, accepted share of the verified) and (threshold, accepted_length)."""
    rates, lengths = list[Point](), list[Point]()
    for line in group:
        assert line.threshold is not None
        rows = [row for row in line.rows if row.domain == domain]
        rates.append((line.threshold, series.acceptance_rate(rows), UNKNOWN))
        lengths.append((line.threshold, line.by_domain.get(domain, math.nan), UNKNOWN))
    return rates, lengths


def reliability(name: str, check: CalibrationCheck, file: str) -> Picture:
    """Figure 6: predicted against observed survival by slot, before and after calibration."""
    colours = ramp(len(check.positions))
    panels = []
    for title in ("before", "after"):
        curves = []
        for colour, slot in zip(colours, check.positions, strict=True):
            after = title == "after"
            curve = slot.curve_after if after else slot.curve_before
            error = slot.ece_after if after else slot.ece_before
            bins = zip(curve.predicted, curve.observed, curve.count, strict=False)
            few = sum(curve.count) * FEW
            kept = [(x, y, n) for x, y, n in bins if n and n >= few and not math.isnan(x + y)]
            points = [(x, y, UNKNOWN) for x, y, _ in kept]
            label = f"slot {slot.k}: ECE {number(error, '.1%')}"
            weights = [float(n) for _, _, n in kept]
            curves.append(Curve(label, points, colour, weights=weights))
        ylabel = "observed share" if title == "before" else ""
        panels.append(
            Panel(
                f"{title.capitalize()} calibration",
                "predicted that the prefix is accepted (share)",
                ylabel,
                curves,
                share=True,
                diagonal=True,
                own_legend=True,
            )
        )
    caption = (
        f"{name}: how often the prefix up to a slot was accepted against how often that was "
        f"predicted; on the dashed line the two agree, larger dots hold more rounds, and bins with "
        f"less than {FEW:.1%} of the rounds are left out. The mean ECE "
        f"over slots goes from {number(check.ece_before_mean, '.2%')} to "
        f"{number(check.ece_after_mean, '.2%')}; a perfect predictor would show about "
        f"{number(check.noise_floor_mean, '.2%')} on {check.rounds:,d} rounds."
    )
    return Picture(file, draw_panels(panels), caption)


def training_curves(evidence: Evidence) -> list[Block]:
    """Held-out accepted_length against minutes, one curve a log."""
    logs = evidence.results.train_logs
    if not logs:
        return [Missing("No training log was found (train_log*.jsonl).", COMMANDS["train_log"])]
    curves, names = {}, list(map(_run_name, logs))
    for (file, measures), name in zip(logs.items(), names, strict=True):
        label = name if names.count(name) == 1 else file
        kind = next((kind for kind in KIND_MARKERS if kind in label), "")
        points = [(held.minutes, held.accepted_length, UNKNOWN) for held in measures]
        curves[kind, label] = points
    drawn = kind_curves(curves)
    panel = Panel("", "training, minutes", "held-out " + LENGTH, drawn)
    caption = (
        f"Teacher-forced estimate of accepted_length on held-out answers during training. From "
        f"the first measure to the last: {ends(drawn)}."
    )
    return [Picture("training_curves.png", draw_panels([panel]), caption)]


def _run_name(file: str) -> str:
    """A log's name without what all logs are called, or else its folder's."""
    folder, *below, name = PurePosixPath(file).parts
    own = name.removeprefix("train_log").replace(".jsonl", "").strip("_-. ")
    return "/".join(filter(None, [*below, own])) or folder
