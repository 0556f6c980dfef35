"""Rounds to calibrate with: what the drafter was sure of, and what the target accepted.

Every draft is verified whole, and answers are collected whole, so that short ones are not
favoured. Which prompts count follows from their order alone, not from how many run at once or
from where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dspark.artifacts import append_jsonl, cache_dir, read_jsonl, repair_jsonl
from dspark.calibration.prompts import MAX_PROMPT, in_check, submit
from dspark.calibration.rounds import Judged, Rounds, to_arrays
from dspark.core import (
    BLOCK,
    DEFAULT_RULE,
    DraftBlock,
    Request,
    RoundRecord,
    SamplingParams,
    Verdict,
)
from dspark.data.bad_rows import BadRows
from dspark.data.prompts import Prompt
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.errors import DataError
from dspark.maths.block_verification import block_overlap
from dspark.maths.verification import overlap
from dspark.targets.target import Target

_FLUSH_S = 5.0
_LAYOUT = 2  # of a part file's rows


@dataclass(frozen=True, slots=True)
class Collected:
    """Rounds to fit on and rounds to check with; no prompt is in both.

    Attributes:
        skipped: prompts too long to be answered.
    """

    fit: Rounds
    check: Rounds
    skipped: int


@dataclass(slots=True)
class Progress:
    """How far collecting is: rounds made so far for either part, answers under way included."""

    fit_rounds: int = 0
    check_rounds: int = 0
    skipped: int = 0


OnProgress = Callable[[Progress], None]


def about(
    target: Target, drafter: Drafter, params: SamplingParams, verification: str
) -> dict[str, Any]:
    """Whose rounds these are and how answers are drawn, as result files say it."""
    return {
        "target": target.name,
        "drafter": drafter.config.kind,
        "dtype": target.precision,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "max_new_tokens": params.max_new_tokens,
        "verification": verification if params.temperature else None,
    }


def part_file(prompts: Sequence[Prompt], params: SamplingParams, seed: int, **more: object) -> Path:
    """Where the rounds of unfinished runs with these very prompts and options are kept.

    Args:
        more: what else decides the rounds (weights, arithmetic, verification).
    """
    asked = [[prompt.id, prompt.conversation] for prompt in prompts]
    decisive = json.dumps([_LAYOUT, asked, asdict(params), seed, sorted(more.items())])
    name = hashlib.sha256(decisive.encode(errors="surrogatepass")).hexdigest()[:16]
    return cache_dir() / "calibration" / f"{name}.rounds.jsonl"


def collect(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    part: Path,
    *,
    rounds: int,
    check_share: float,
    slots: int,
    seed: int = 0,
    verification: str = DEFAULT_RULE,
    on_progress: OnProgress = lambda progress: None,
    bad_rows: BadRows | None = None,
) -> Collected:
    """Answer prompts until the check part has `rounds` rounds, or prompts run out.

    Args:
        drafter: with a confidence head; every draft is verified whole.
        prompts: with distinct ids, in the order they are taken.
        params: how answers are drawn; each prompt gets a seed of its own.
        part: file that finished answers' rounds are kept in; a run that finds it goes on there.
            One that cannot be written costs a warning.
        check_share: share of the prompts that are kept out of fitting.
        slots: answers made at the same time.
        verification: the rule by which drafts above temperature 0 are accepted.
        on_progress: called after every step.
        bad_rows: what to do with prompts that the target cannot take; None stops at the first.

    Raises:
        DataError: the file is damaged.
        CheckpointError: a confidence is not a number.
    """
    size = drafter.config.block_size
    room = MAX_PROMPT + params.max_new_tokens
    build = partial(
        Engine, target, drafter, f"fixed:{size}", slots, room, verification=verification
    )
    job = _Job(build, prompts, params, part, rounds, check_share, seed)
    job.bad_rows = bad_rows or job.bad_rows
    try:
        while True:
            job.fill()
            if not job.engine.queue:
                break
            outputs = job.engine.step()
            job.take([output.request for output in outputs if output.finished])
            on_progress(job.progress())
    finally:  # finished answers are kept whatever happens
        job.flush()
    names = job.enough()
    fit, check = (
        to_arrays(
            (job.done[name] for name in names if in_check(name, check_share) == wanted),
            size,
            params.max_new_tokens,
        )
        for wanted in (False, True)
    )
    return Collected(fit, check, job.finished.skipped)


class _Job:
    """The prompts in order: those walked by are answered, being answered, or too long."""

    def __init__(
        self,
        build: Callable[..., Engine],
        prompts: Sequence[Prompt],
        params: SamplingParams,
        part: Path,
        rounds: int,
        check_share: float,
        seed: int,
    ) -> None:
        self.engine = build(on_verdict=self._watch)
        self.params, self.part, self.seed = params, part, seed
        self.rounds, self.check_share = rounds, check_share
        self.left, self.bad_rows = iter(prompts), BadRows()
        self.walked: list[str] = []
        self.finished = Progress()
        self.open: dict[Request, str] = {}
        self.overlaps: dict[Request, list[list[float]]] = defaultdict(list)
        self.done = self._read_part()
        self.keeps = True
        self._rows: list[dict[str, Any]] = []
        self._flushed = time.monotonic()

    def _watch(
        self,
        requests: Sequence[Request],
        target_RKV: Tensor,
        drafts: DraftBlock,
        verify_len: Sequence[int],
        verdict: Verdict,
    ) -> None:
        """Note c* of every slot: how likely it passes if those before it did."""
        assert drafts.draft_probs_RKV is not None
        slots = drafts.draft_ids_RK.shape[1]
        d2t = None if self.engine.drafter is None else self.engine.drafter.d2t
        block = self.engine.verification == BLOCK
        given = block_overlap if block else lambda p, q, ids, d2t: overlap(p, q, d2t)
        rows = given(
            target_RKV[:, :slots], drafts.draft_probs_RKV, drafts.draft_ids_RK, d2t
        ).tolist()
        for request, row in zip(requests, rows, strict=True):
            self.overlaps[request].append(row)

    def _read_part(self) -> dict[str, Sequence[Judged]]:
        if not self.part.exists():
            return {}
        repair_jsonl(self.part)
        return {
            row["prompt"]: [_judged(*fields) for fields in row["rounds"]]
            for row in read_jsonl(self.part)
        }

    def progress(self) -> Progress:
        """Rounds of all prompts walked by so far."""
        now = replace(self.finished)
        for request, name in self.open.items():
            self._count(now, name, len(request.rounds))
        return now

    def _count(self, progress: Progress, name: str, rounds: int) -> None:
        if in_check(name, self.check_share):
            progress.check_rounds += rounds
        else:
            progress.fit_rounds += rounds

    def fill(self) -> None:
        """Keep the slots taken until rounds or prompts run out."""
        slots = self.engine.queue.slots.size
        while len(self.open) < slots and self.progress().check_rounds < self.rounds:
            prompt = next(self.left, None)
            if prompt is None:
                return
            if prompt.id in self.done:
                self.walked.append(prompt.id)
                self._count(self.finished, prompt.id, len(self.done[prompt.id]))
            else:
                self._submit(prompt)

    def _submit(self, prompt: Prompt) -> None:
        request = submit(self.engine, prompt, self.params, self.seed, self.bad_rows)
        if request is None:
            self.finished.skipped += 1
            return
        self.open[request] = prompt.id
        self.walked.append(prompt.id)

    def take(self, finished: Iterable[Request]) -> None:
        """Keep the rounds of finished answers; they go to disk every few seconds."""
        for request in finished:
            name = self.open.pop(request)
            seen = self.overlaps.pop(request, None) or [[]] * len(request.rounds)
            rounds = [Judged(*pair) for pair in zip(request.rounds, seen, strict=True)]
            self.done[name] = rounds
            self._count(self.finished, name, len(rounds))
            self._rows.append({"prompt": name, "rounds": list(map(_fields, rounds))})
        if time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what was taken to disk, for a later run; this one has it in memory."""
        if self.keeps:
            try:
                append_jsonl(self.part, self._rows)
            except DataError as error:
                self.keeps = False
                warnings.warn(f"{error}; an interrupted run starts anew", stacklevel=2)
        self._rows, self._flushed = [], time.monotonic()

    def enough(self) -> list[str]:
        """The shortest run of prompts from the first with enough rounds; all if there are fewer.

        More were answered when more were running, which should not show in the result.
        """
        check_rounds = 0
        for count, name in enumerate(self.walked, 1):
            if in_check(name, self.check_share):
                check_rounds += len(self.done[name])
            if check_rounds >= self.rounds:
                return self.walked[:count]
        return self.walked


def _fields(judged: Judged) -> list[Any]:
    record = judged.record
    counts = [record.verified, record.accepted, record.committed, record.stopped]
    return [*counts, list(judged.overlap), list(record.confidence)]


def _judged(
    verified: int,
    accepted: int,
    committed: int,
    stopped: bool,
    overlaps: Sequence[float],
    confidence: Sequence[float],
) -> Judged:
    sure = tuple(confidence)
    return Judged(RoundRecord(len(sure), verified, accepted, committed, stopped, sure), overlaps)
