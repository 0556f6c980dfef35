"""Drafters on prompt files: accepted length, acceptance by position, speed.

A cell is one drafter on one dataset at one temperature under one policy. Its prompts go through
the engine together, and its row is on disk before the next cell begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from dspark.artifacts import append_jsonl, read_jsonl
from dspark.core import Request, StepOutput
from dspark.data.bad_rows import BadRows
from dspark.engine.engine import Engine
from dspark.evaluation.acceptance import figures
from dspark.evaluation.cells import (
    Cell,
    Contender,
    Dataset,
    Question,
    Settings,
    cell_fields,
    fingerprint,
    plan_cells,
    questions_of,
    shared_fields,
)
from dspark.evaluation.trace import Key, TraceFile
from dspark.maths.summary import macro
from dspark.targets.target import Target

SCHEMA = "dspark.eval/1"
WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: cells finished of all, prompts finished of those in this cell."""

    cell: Key
    cells_done: int
    cells: int
    prompts_done: int
    prompts: int


OnProgress = Callable[[Progress], None]
Warn = Callable[[str], None]


def run(
    target: Target,
    contenders: Sequence[Contender],
    datasets: Sequence[Dataset],
    settings: Settings,
    *,
    cells_path: Path | None = None,
    trace: TraceFile | None = None,
    on_progress: OnProgress = lambda progress: None,
    warn: Warn = lambda line: None,
    bad_rows: BadRows | None = None,
) -> dict[str, Any]:
    """Judge drafters on datasets.

    Drafters take turns inside a dataset and temperature, so that drift of the machine's speed
    falls on all alike.

    Args:
        cells_path: JSON-lines file that finished cells are added to, and taken from when they
            were made with the same settings; None keeps nothing.
        trace: receives the rounds of every cell; a cell whose rounds it lacks is made again.
        on_progress: called as a cell begins, after every step, and as the cell ends.
        warn: receives a line for each dataset with prompts that had to be skipped.
        bad_rows: what to do with prompts that the target cannot take; None stops at the first.

    Returns:
        The fields of schema dspark.eval/1, but for those that say which prompts were chosen and
        why.

    Raises:
        ConfigError: see `plan_cells`.
        DataError: no prompt of a dataset fits, or a file cannot be read or written.
        EngineError: a model gave numbers that nothing can be drawn from.
    """
    cells = plan_cells(contenders, datasets, settings)
    bad_rows = bad_rows or BadRows()
    questions = {d.name: questions_of(target, d, settings.seed, bad_rows) for d in datasets}
    skipped = {d.name: len(d.prompts) - len(questions[d.name]) for d in datasets}
    for name in filter(skipped.get, skipped):
        warn(f"{name}: {skipped[name]} prompts skipped, too long for the target's context")
    shared = shared_fields(target, settings)
    marks = {cell.key: fingerprint(cell, target, settings) for cell in cells}
    done = _finished(cells_path, marks)
    if trace is not None:
        header = {**shared, "top_p": settings.top_p, "top_k": settings.top_k}
        whole = trace.begin(header, {key: row["rounds"] for key, row in done.items()})
        done = {key: row for key, row in done.items() if key in whole}
    order = [(d.name, temperature) for d in datasets for temperature in settings.temperatures]
    for cell in sorted(cells, key=lambda c: order.index((c.dataset.name, c.temperature))):
        if cell.key in done:
            continue
        asked = questions[cell.dataset.name]
        report = _Reporter(cell, len(done), len(cells), len(asked), on_progress)
        requests, seconds = answer(target, cell, asked, settings, report.step)
        ids = [question.id for question in asked]
        row = cell_fields(cell, settings) | {"skipped": skipped[cell.dataset.name]}
        row |= figures(cell.dataset.name, ids, requests, cell.policy.draft_len, seconds)
        if trace is not None:
            trace.append(cell.key, ids, requests)
        if cells_path is not None:
            append_jsonl(cells_path, [{"fingerprint": marks[cell.key], "row": row}])
        done[cell.key] = row
        report.end()
    rows = [done[cell.key] for cell in cells]
    return {**shared, "rows": rows, "macro": macro(rows)}


def answer(
    target: Target,
    cell: Cell,
    questions: Sequence[Question],
    settings: Settings,
    on_step: Callable[[list[StepOutput]], None] = lambda outputs: None,
) -> tuple[list[Request], float]:
    """Answer all prompts of a cell, as many at a time as there are slots.

    Returns:
        The finished requests in the order of the prompts, and the seconds of the engine's steps.
    """
    drafter = cell.contender.drafter
    # Room for a whole block behind the longest answer: no prompt's drafts are cut for another's.
    longest = max(len(question.prompt_ids) for question in questions)
    room = longest + settings.max_new_tokens + drafter.config.block_size
    slots = min(settings.slots, len(questions))
    engine = Engine(target, drafter, cell.policy, slots, room, verification=settings.verification)
    sampled = cell.temperature > 0
    params = [settings.params(cell.temperature, q.seed if sampled else None) for q in questions]
    # First calls pay for memory and kernel choice; they are not anyone's speed.
    few = replace(params[0], max_new_tokens=min(WARM_UP_TOKENS, settings.max_new_tokens))
    engine.generate([questions[0].prompt_ids], few)
    requests = [
        engine.submit(question.prompt_ids, p) for question, p in zip(questions, params, strict=True)
    ]
    seconds = 0.0
    while engine.queue:
        start = perf_counter()
        outputs = engine.step()
        seconds += perf_counter() - start
        on_step(outputs)
    return requests, seconds


class _Reporter:
    """Counts a cell's finished prompts for whoever watches."""

    def __init__(
        self, cell: Cell, cells_done: int, cells: int, prompts: int, on_progress: OnProgress
    ) -> None:
        self.progress = Progress(cell.key, cells_done, cells, 0, prompts)
        self.on_progress = on_progress
        on_progress(self.progress)

    def step(self, outputs: Iterable[StepOutput]) -> None:
        """After an engine step."""
        finished = sum(output.finished for output in outputs)
        done = self.progress.prompts_done + finished
        self.progress = replace(self.progress, prompts_done=done)
        self.on_progress(self.progress)

    def end(self) -> None:
        """The cell's row is safe."""
        done = self.progress.cells_done + 1
        self.on_progress(replace(self.progress, cells_done=done, prompts_done=0))


def _finished(
    path: Path | None, wanted: Mapping[Key, Mapping[str, Any]]
) -> dict[Key, dict[str, Any]]:
    """Rows of an earlier run, by cell, where their fingerprint is the wanted one."""
    if path is None or not path.exists():
        return {}
    spell = lambda known: json.dumps(known, sort_keys=True)  # noqa: E731
    rows = {spell(entry.get("fingerprint")): entry.get("row") for entry in read_jsonl(path)}
    return {key: row for key, known in wanted.items() if (row := rows.get(spell(known)))}
