"""Training runs side by side, by the held-out measures they left: bars and a table a file."""

from __future__ import annotations

import json

from dspark.reporting.evidence import COMMANDS, LENGTH
from dspark.reporting.figures import Bar, draw_bars
from dspark.reporting.load import Results
from dspark.reporting.page import Block, Missing, Picture, numbered
from dspark.reporting.records import UNKNOWN, RunRow, Runs
from dspark.reporting.style import kind_colour
from dspark.reporting.tables import NOTHING, Cell, Table, number, texts


def compared(results: Results) -> list[Block]:
    """Every file of `dspark compare`."""
    blocks = list[Block]()
    for place, (file, record) in enumerate(results.of(Runs), 1):
        blocks += [_picture(record, place), _table(file, record)]
        blocks += [f"{line}." for line in record.warnings]
    return blocks or [Missing("No training runs were compared.", COMMANDS["runs"])]


def _picture(record: Runs, place: int) -> Picture:
    labels = _labels(record.rows)
    bars = [
        Bar(label, row.accepted_length, UNKNOWN, kind_colour(row.kind))
        for label, row in zip(labels, record.rows, strict=True)
    ]
    values = "; ".join(f"{bar.label} {number(bar.value, '.3f')}" for bar in bars)
    of = f"Study {record.study}: held-out" if record.study else "Held-out"
    kinds = len({row.kind for row in record.rows})
    alike = " Kinds are not measured alike: compare within one." if kinds > 1 else ""
    caption = (
        f"{of} accepted_length at the end of each training run, teacher-forced on the answers that "
        f"the run held out itself; not what an engine reaches.{alike} {values}."
    )
    return Picture(numbered("runs", place), draw_bars(bars, f"held-out {LENGTH}"), caption)


def _labels(rows: list[RunRow]) -> list[str]:
    """Names, with the kind where there are several and the name does not say it."""
    several = len({row.kind for row in rows}) > 1
    return [
        f"{row.name} ({row.kind})" if several and row.kind not in row.name else row.name
        for row in rows
    ]


def _table(file: str, record: Runs) -> Table:
    first = record.rows[0].name
    rows = [
        [
            Cell(row.name, _differs(row)),
            *texts(
                [
                    f"{row.kind}, {row.markov_head_type} head"
                    if row.markov_head_type
                    else row.kind,
                    row.device or NOTHING,
                    str(row.num_layers),
                    str(row.block_size),
                    str(row.markov_rank) if row.markov_rank else NOTHING,
                    f"{row.draft_vocab_size:,d}" if row.draft_vocab_size else "all",
                    number(row.parameters, ",d"),
                    number(row.minutes, ".1f"),
                    f"{row.steps:,d}",
                    f"{row.anchors:,d}",
                    number(row.accepted_length, ".3f"),
                    " ".join(number(share) for share in row.acceptance),
                ]
            ),
        ]
        for row in record.rows
    ]
    head = ["run", "kind", "device", "layers", "block size", "head's rank", "draft vocabulary"]
    head += ["parameters", "minutes", "steps", "anchors", "accepted_length", "acceptance by slot"]
    title = f"Runs of {file}; below each name what differs from {first}"
    return Table(title, head, rows, names=3)


def _differs(row: RunRow) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in row.differs.items())
