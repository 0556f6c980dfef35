"""Pictures of many users at once (the paper's Figures 7 and 8) and of peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dspark.reporting import serving
from dspark.reporting.evidence import COMMANDS, Evidence, ends
from dspark.reporting.figures import Bar, Curve, Panel, draw_bars, draw_panels
from dspark.reporting.page import Block, Missing, Picture, numbered
from dspark.reporting.records import UNKNOWN, LoadRow, PeerRow, Peers
from dspark.reporting.series import Point
from dspark.reporting.serving import LoadLine
from dspark.reporting.style import DASHES, KIND_MARKERS, OTHER, PLAIN, kind_colour, ramp
from dspark.reporting.tables import number

ALL_USERS = "tokens/s, all users"
NO_LOAD = Missing("No load was measured.", COMMANDS["load"])
SHADES = ramp(8)  # of the fixed lengths
Pick = Callable[[LoadRow], Point]


def frontiers(evidence: Evidence) -> list[Block]:
    """Figure 7: aggregate throughput against per-user speed, a line a policy over levels."""
    blocks = list[Block]()
    for place, (setting, some) in enumerate(_closed(evidence), 1):
        curves = _curves(
            some, lambda r: (r.tokens_per_s_per_user_p50, r.tokens_per_s, r.tokens_per_s_ci)
        )
        panel = Panel("", "tokens/s a user, median", ALL_USERS, curves)
        users = [row.users for row in some[0].closed]
        caption = (
            f"{setting}: throughput of all users against the speed one of them sees, from "
            f"{users[0]} to {users[-1]} users; up and to the right is better. Bars are 95 % "
            f"intervals. Throughput from fewest users to most: {ends(curves, '.0f')}."
        )
        blocks.append(Picture(numbered("frontier", place), draw_panels([panel]), caption))
    return blocks or [NO_LOAD]


def under_load(evidence: Evidence) -> list[Block]:
    """Figure 8: throughput, and how much is verified, against load."""
    blocks = list[Block]()
    for place, (setting, some) in enumerate(_closed(evidence), 1):
        speeds = _curves(some, lambda r: (r.users, r.tokens_per_s, r.tokens_per_s_ci))
        drafted = [line for line in some if line.policy != "off"]
        budgets = _curves(drafted, lambda r: (r.users, r.mean_verify_len, UNKNOWN))
        panels = [
            Panel(title, "users", ylabel, curves, whole_x=True, doubling_x=True)
            for title, ylabel, curves in (
                ("Throughput", ALL_USERS, speeds),
                ("Verification budget", "draft tokens verified a round", budgets),
            )
            if curves
        ]
        caption = (
            f"{setting}: throughput of all users and mean verify length by users. From fewest to "
            f"most, verify length: {ends(budgets) or 'nothing was drafted'}."
        )
        blocks.append(Picture(numbered("load", place), draw_panels(panels), caption))
    return blocks or [NO_LOAD]


def _closed(evidence: Evidence) -> list[tuple[serving.Setting, list[LoadLine]]]:
    """Lines that have a closed loop, by setting."""
    found = serving.load_lines(evidence.results).items()
    kept = [(setting, [line for line in some if line.closed]) for setting, some in found]
    return [(setting, some) for setting, some in kept if some]


def _curves(some: Sequence[LoadLine], pick: Pick) -> list[Curve]:
    """Adaptive policies and the baseline in their drafter's colour, the other fixed lengths by
    length, off in grey."""
    drafters = list(dict.fromkeys((line.file, line.drafter) for line in some))
    curves = []
    for label, line in zip(serving.load_labels(some), some, strict=True):
        place = drafters.index((line.file, line.drafter))
        length = line.policy.removeprefix("fixed:")
        colour, dash = kind_colour(line.kind), "-" if line.policy == "causal" else "--"
        if line.policy == "off":
            colour, dash = OTHER, DASHES[place % len(DASHES)]
        elif length.isdigit() and line.kind != serving.BASELINE:
            colour, dash = SHADES[int(length) % len(SHADES)], ":"
        points = [pick(row) for row in line.closed]
        curves.append(Curve(label, points, colour, KIND_MARKERS.get(line.kind, "x"), dash))
    return curves


def peers(record: Peers, place: int, machine: str = "") -> Picture:
    """Speeds of all peers of one file as bars; a missing one is named in the caption."""
    there = [row for row in record.rows if row.missing is None]
    bars = [Bar(row.label, row.tokens_per_s, row.tokens_per_s_ci, _colour(row)) for row in there]
    missing = "; ".join(f"{r.label}: {r.missing}" for r in record.rows if r.missing is not None)
    values = "; ".join(f"{bar.label} {number(bar.value, '.1f')}" for bar in bars)
    threads = f"{record.threads} threads" + (f", {machine}" if machine else "")
    caption = (
        f"{record.target}, {record.dtype}, {threads}, one user, greedy: tokens a second, prompt "
        f"processing included, with 95 % intervals over prompts: {values}."
        + (f" Missing: {missing}." if missing else "")
    )
    return Picture(numbered("peers", place), draw_bars(bars, "tokens/s"), caption)


def _colour(row: PeerRow) -> str:
    if row.peer != "dspark":
        return OTHER
    return kind_colour(row.drafter) if row.drafter else PLAIN
