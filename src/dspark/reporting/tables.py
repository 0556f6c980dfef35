"""Tables of a report as plain cells: which number stands where, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dspark.maths.never_worse import LIMITS
from dspark.reporting.calibration_records import CalibrationCheck, ConfidenceFit
from dspark.reporting.load import Results
from dspark.reporting.records import Demo, HeadCost, Load, Peers
from dspark.reporting.series import Line, datasets, domains, labels
from dspark.reporting.serving import LoadLine, Match, load_labels, never_worse

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: a text, a smaller note below it, and whether it stands out."""

    text: str
    note: str = ""
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Args:
        groups: heads above the heads, each over a number of columns.
        names: how many columns from the left hold names, not numbers.
    """

    title: str
    head: list[str]
    rows: list[list[Cell]]
    groups: list[tuple[str, int]] = field(default_factory=list)
    names: int = 1


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash where it is not known."""
    return NOTHING if value is None or math.isnan(value) else format(value, form)


def interval(ends: tuple[float, float], form: str = ".2f") -> str:
    """An interval as "1.20 to 1.31"; empty where it is not known."""
    low, high = ends
    return "" if math.isnan(low) or math.isnan(high) else f"{low:{form}} to {high:{form}}"


def texts(row: Iterable[str]) -> list[Cell]:
    """Cells without notes."""
    return [Cell(text) for text in row]


def accepted_lengths(some: Sequence[Line], title: str) -> Table:
    """accepted_length: lines by datasets, grouped by domain, and their macro-average."""
    groups = datasets(some)
    names = [dataset for group in groups.values() for dataset in group]
    rows = []
    for label, line in zip(labels(some), some, strict=True):
        found = {row.dataset: (row.accepted_length, row.accepted_length_ci) for row in line.rows}
        values = [found.get(name, (math.nan, (math.nan, math.nan))) for name in names]
        values.append((line.accepted_length, line.interval))
        cells = [Cell(number(value), interval(ends)) for value, ends in values]
        rows.append([Cell(label), *cells])
    return Table(
        title,
        ["drafter", *names, "macro"],
        _strong(rows),
        [("", 1), *((domain, len(group)) for domain, group in groups.items()), ("", 1)],
    )


def _strong(rows: list[list[Cell]]) -> list[list[Cell]]:
    """Rows with the largest number of each column standing out, where there is a choice."""
    for column in range(1, len(rows[0]) if len(rows) > 1 else 0):
        values = [row[column].text for row in rows]
        best = max((float(v) for v in values if v != NOTHING), default=math.nan)
        for row, value in zip(rows, values, strict=True):
            if value != NOTHING and float(value) == best:
                row[column] = Cell(value, row[column].note, strong=True)
    return rows


def gains(some: Sequence[Line], title: str) -> Table | None:
    """Gains of the dspark drafters over the others; None if the files hold none."""
    chosen = [
        (label, line)
        for label, line in zip(labels(some), some, strict=True)
        if line.kind == "dspark" and line.gains
    ]
    if not chosen:
        return None
    others = list(dict.fromkeys(other for _, line in chosen for other in line.gains))
    rows = []
    for label, line in chosen:
        found = [line.gains.get(other) for other in others]
        cells = [
            Cell(number(g.gain, "+.1%"), interval(g.ci, "+.1%")) if g else Cell(NOTHING)
            for g in found
        ]
        rows.append([Cell(label), *cells])
    return Table(title, ["drafter", *(f"over {other}" for other in others)], rows)


def study(some: Sequence[Line], title: str) -> Table:
    """What the drafters of a study are built like, and accepted_length by domain."""
    names = domains(some)
    rows = []
    for label, line in zip(labels(some), some, strict=True):
        shape = line.shape
        built = [
            label,
            line.built,
            str(shape.num_layers),
            str(shape.block_size),
            f"{shape.draft_vocab_size:,d}" if shape.draft_vocab_size else "all",
            f"{shape.parameters:,d}",
        ]
        lengths = [number(line.by_domain.get(name)) for name in names]
        macro = Cell(number(line.accepted_length), interval(line.interval))
        rows.append([*texts([*built, *lengths]), macro])
    head = ["drafter", "kind", "layers", "block size", "draft vocabulary", "parameters"]
    return Table(title, [*head, *names, "macro"], rows, names=2)


def head_costs(results: Results) -> Table:
    """Times of a round and of its heads."""
    rows = [
        texts(
            [
                file,
                results.machine(file) or NOTHING,
                row.drafter,
                row.markov_head_type or NOTHING,
                str(row.block_size),
                number(row.round_ms),
                number(row.head_ms, ".3f"),
                number(row.confidence_ms, ".3f"),
                number(row.share, ".1%"),
            ]
        )
        for file, record in results.of(HeadCost)
        for row in record.rows
    ]
    head = ["file", "machine", "drafter", "head", "block size", "round, ms"]
    head += ["sequential head, ms", "confidence head, ms", "sequential head's share"]
    return Table("What the heads cost in a round", head, rows, names=4)


def demos(results: Results) -> Table:
    """Speeds of every demo file."""
    head = [
        "file",
        "machine",
        "target",
        "drafter",
        "dtype",
        "threads",
        "kernels",
        "policy",
        "temperature",
        "prompts",
    ]
    head += ["transformers, tokens/s", "plain, tokens/s", "drafted, tokens/s", "speed-up"]
    head += ["accepted_length", "identical texts"]
    rows = [
        texts(
            [
                file,
                results.machine(file) or NOTHING,
                demo.target,
                demo.drafter,
                demo.dtype,
                str(demo.threads),
                demo.kernels or NOTHING,
                demo.policy or NOTHING,
                f"{demo.temperature:g}",
                str(demo.prompts),
                number(demo.transformers_tokens_per_s, ".1f"),
                number(demo.plain_tokens_per_s, ".1f"),
                number(demo.dspark_tokens_per_s, ".1f"),
                number(demo.speedup),
                number(demo.accepted_length),
                number(demo.identical_texts, ".0%"),
            ]
        )
        for file, demo in results.of(Demo)
    ]
    return Table("Speed with and without the drafter, one user", head, rows, names=5)


def demo_domains(records: Sequence[tuple[str, Demo]]) -> Table:
    """Speed-up by domain of every demo file."""
    names = list(dict.fromkeys(domain for _, demo in records for domain in demo.domains))
    rows = []
    for file, demo in records:
        found = [demo.domains.get(name) for name in names]
        cells = [
            Cell(number(d.speedup), f"τ {number(d.accepted_length)}") if d else Cell(NOTHING)
            for d in found
        ]
        rows.append([Cell(file), *cells])
    return Table("Speed-up by domain, accepted_length (τ) below", ["file", *names], rows)


def training_cost(every: Sequence[Line]) -> Table | None:
    """Size of each drafter and what its training took; None if no file tells of a training."""
    rows: dict[tuple[str, ...], None] = {}
    for line in every:
        if (spent := line.training) is None:
            continue
        minutes = None if spent.elapsed_s is None else spent.elapsed_s / 60
        row = (
            line.drafter,
            line.built,
            str(line.shape.num_layers),
            str(line.shape.block_size),
            number(line.shape.draft_vocab_size, ",d"),
            number(line.shape.parameters, ",d"),
            number(minutes, ".1f"),
            number(spent.anchors, ",d"),
            number(spent.response_tokens, ",d"),
        )
        rows[row] = None  # one drafter comes in many lines
    head = ["drafter", "kind", "layers", "block size", "draft vocabulary", "parameters"]
    head += ["minutes", "anchors", "response tokens"]
    return Table("Training", head, [texts(row) for row in rows], names=2) if rows else None


def calibration(name: str, check: CalibrationCheck) -> Table:
    """Calibration by draft slot and its mean."""
    rows = [
        texts(
            [
                str(p.k),
                f"{p.rounds:,d}",
                number(p.base_rate, ".3f"),
                number(p.temperature),
                *(number(e, ".2%") for e in (p.ece_before, p.ece_after, p.noise_floor)),
                *(number(x, ".3f") for x in (p.auroc, p.auroc_true)),
                *(number(x, ".3f") for x in (p.brier_before, p.brier_after)),
            ]
        )
        for p in check.positions
    ]
    means = (check.ece_before_mean, check.ece_after_mean, check.noise_floor_mean)
    mean_row = ["mean", f"{check.rounds:,d}", NOTHING, NOTHING]
    mean_row += [number(e, ".2%") for e in means]
    mean_row += [number(x, ".3f") for x in (check.auroc_mean, check.auroc_true_mean)]
    rows.append(texts([*mean_row, NOTHING, NOTHING]))
    head = ["slot", "rounds", "base rate", "temperature", "ECE before", "ECE after"]
    head += ["noise floor", "AUROC", "AUROC of c*", "Brier before", "Brier after"]
    return Table(f"Calibration by slot, {name}", head, rows)


def confidence_heads(name: str, fit: ConfidenceFit) -> Table:
    """The linear confidence head against the informed one, by draft slot."""
    rows = [
        texts(
            [
                str(p.k),
                f"{p.rounds:,d}",
                *(number(x, ".3f") for x in (p.base_rate, p.auroc_linear, p.auroc)),
            ]
        )
        for p in fit.positions
    ]
    means = (number(x, ".3f") for x in (fit.auroc_linear_mean, fit.auroc_mean))
    rows.append(texts(["mean", f"{fit.rounds:,d}", NOTHING, *means]))
    head = ["slot", "rounds", "base rate", "AUROC linear", "AUROC informed"]
    return Table(f"Confidence heads at temperature {fit.temperature:g}, {name}", head, rows)


def loads(some: Sequence[LoadLine], title: str) -> Table:
    """Every policy at every level of load."""
    rows = []
    for label, line in zip(load_labels(some), some, strict=True):
        for row in line.rows:
            cells = [
                Cell(number(row.tokens_per_s, ".1f"), interval(row.tokens_per_s_ci, ".1f")),
                Cell(number(row.tokens_per_s_per_user_p50, ".1f")),
                Cell(number(row.tokens_per_s_per_user_p95, ".1f")),
                Cell(number(row.ttft_p50, ".3f"), f"p95 {number(row.ttft_p95, '.3f')}"),
                Cell(number(row.accepted_length)),
                Cell(number(row.mean_verify_len)),
                Cell(number(row.wasted_share, ".0%")),
            ]
            rows.append([Cell(label), Cell(row.level), *cells])
    head = ["policy", "load", "tokens/s, all", "a user, p50", "a user, p95", "first token, s"]
    head += ["accepted_length", "verify_len", "wasted"]
    return Table(title, head, rows, names=2)


def never_worse_table(records: Sequence[tuple[str, Load]]) -> Table | None:
    """Adaptive policies against the best fixed choice of each level; None without any."""
    rows = []
    for file, record in records:
        for level, policy, found in never_worse(record):
            short = found.falls_short(policy)
            ratio = f"{found.ratio:.3f}" + (f", below {LIMITS[policy]}" if short else "")
            names = [file, record.drafter, level, policy, " and ".join(dict.fromkeys(found.chosen))]
            ends = interval((found.low, found.high), ".3f")
            rows.append([*texts(names), Cell(ratio, ends, strong=short)])
    head = ["file", "drafter", "load", "policy", "best fixed", "ratio of throughputs"]
    return Table("Over the best fixed choice", head, rows, names=5) if rows else None


def over_baseline(some: Sequence[tuple[str, list[Match]]], title: str) -> Table:
    """Frontiers against MTP-1's at each of its points."""
    rows = [
        texts(
            [
                label,
                number(match.throughput, ".1f"),
                number(match.speed, ".1f"),
                number(match.speed_ratio),
                number(match.throughput_ratio),
            ]
        )
        for label, found in some
        for match in found
    ]
    head = ["policy", "MTP-1, all, tokens/s", "MTP-1, a user, tokens/s"]
    head += ["per-user speed at that throughput", "throughput at that per-user speed"]
    return Table(title, head, rows)


def peers(file: str, record: Peers) -> Table:
    """Every peer of one file; a missing one says why."""
    rows = []
    for row in record.rows:
        cells = [
            Cell(number(row.tokens_per_s, ".1f"), interval(row.tokens_per_s_ci, ".1f")),
            Cell(number(row.ratio_to_plain), interval(row.ratio_ci)),
            *texts(
                [
                    number(row.accepted_length),
                    number(row.equal_texts, ".0%"),
                    number(row.largest_gap, ".4f"),
                    NOTHING if row.prompts is None else str(row.prompts),
                ]
            ),
        ]
        rows.append([Cell(row.label), Cell(row.missing or row.version or NOTHING), *cells])
    head = ["peer", "version, or why it is missing", "tokens/s", "over dspark off"]
    head += ["accepted_length", "texts equal", "largest logit gap", "prompts"]
    return Table(f"Peers, {file}", head, rows, names=2)
