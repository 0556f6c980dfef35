"""Responses by the target itself: the on-policy data that drafters learn from (DSpark §3.3).

Rows are appended as completions finish and name their prompt, so a run that was killed goes on
where it stopped. A row depends on its prompt and the options alone (up to rounding: a batch's
make-up can move a logit by the last bit).
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dspark.artifacts import append_jsonl, check_writable, read_jsonl, repair_jsonl
from dspark.core import FinishReason, Request
from dspark.data.bad_rows import BadRows
from dspark.data.prompt_rows import prompt_ids
from dspark.data.prompts import Prompt
from dspark.data.responses import ResponseRow
from dspark.errors import ConfigError, DataError, PromptTooLongError, RequestError
from dspark.regeneration.batches import Decoder, PromptBatch, make_batch
from dspark.regeneration.conversations import Talk, opening, taken_up
from dspark.regeneration.mixture import (
    DEFAULT_MIXTURE,
    Mixture,
    digest,
    sampling_params,
    worded,
)
from dspark.targets.target import Target

MAX_LEN = 1024
_FLUSH_ROWS, _FLUSH_S = 16, 2.0


@dataclass(slots=True)
class RegenerationProgress:
    """How far a run is.

    Attributes:
        prompts: all that were given.
        rows: completions in the file, those of earlier runs included.
        skipped: prompts too long to be completed.
        tokens: response tokens of the file's rows, earlier runs' included.
        new_tokens: response tokens drawn in this run, those of unfinished completions included.
        seconds: since this run began.
    """

    prompts: int
    rows: int = 0
    skipped: int = 0
    tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0


OnProgress = Callable[[RegenerationProgress], None]


def run(
    target: Target,
    prompts: Sequence[Prompt],
    out_path: str | Path,
    *,
    mixture: Mixture = DEFAULT_MIXTURE,
    suffix_share: float = 0.5,
    max_new_tokens: int = 384,
    max_len: int = MAX_LEN,
    slots: int = 128,
    seed: int = 0,
    limit_tokens: int | None = None,
    turns: int | None = None,
    on_progress: OnProgress = lambda progress: None,
    decoder: Decoder = "auto",
    bad_rows: BadRows | None = None,
) -> RegenerationProgress:
    """Complete prompts with the target and append the completions to a JSON-lines file.

    Args:
        target: completes; plain decoding, nothing is drafted.
        prompts: with distinct ids; taken in an order that the seed decides.
        out_path: rows as `ResponseRow` describes; prompts it has a completion of are left out.
        mixture: shares of the prompts with their temperature and top-p.
        suffix_share: share of the math prompts that ask for a boxed final answer.
        max_new_tokens: length limit of a completion.
        max_len: longest prompt and completion together; a prompt without room for a whole
            completion is skipped and counted.
        slots: completions made at the same time; on a GPU at most what its memory holds.
        seed: decides order, temperatures, wording and draws, each from the prompt's id (and turn).
        limit_tokens: begin no new completion once the file and the completions under way have so
            many response tokens; those under way are finished, so that short ones are not favoured.
        turns: completions a conversation at most, each in its own row (:mod:`conversations`): only
            what the user says is taken from a prompt. None completes the last message alone, after
            whatever the prompt holds before it. A conversation ends at a completion that a length
            limit cut, or where the next would have no room.
        on_progress: called after every step.
        decoder: "graph" draws through `PlainBatch`, "engine" through `Engine`; "auto" takes the
            former on a GPU where the target suits it. The completions are the same up to rounding.

        bad_rows: what to do with prompts that the target cannot take; None stops at the first.

    Raises:
        DataError: the file cannot be written, or holds completions that other options gave; the
            target cannot take a prompt, and bad rows stop the work.
        ConfigError: the file's name ends in .gz, which cannot be appended to safely.
    """
    out_path = Path(out_path)
    if out_path.suffix == ".gz":
        raise ConfigError(
            "Completions cannot be appended to a compressed file",
            found=out_path,
            fix="Leave .gz off; compress the finished file",
        )
    if turns is not None and turns < 1:
        raise ConfigError("A conversation has no turn", found=turns, fix="Use 1 or more")
    job = _Regeneration(
        target, prompts, out_path, mixture, suffix_share, max_new_tokens, seed, turns
    )
    job.bad_rows = bad_rows or job.bad_rows
    batch = make_batch(target, slots, max_len, decoder)
    started = time.monotonic()
    fill = partial(_fill, batch, job, limit_tokens)
    try:
        fill()
        while batch:
            drawn, finished = batch.step(fill)
            job.progress.new_tokens += drawn
            for request in finished:
                job.finish(request)
            job.flush_if_due()
            job.progress.seconds = time.monotonic() - started
            on_progress(job.progress)
            if not batch:
                fill()
    finally:  # finished completions are kept whatever happens
        job.flush()
    return job.progress


def _fill(batch: PromptBatch, job: _Regeneration, limit_tokens: int | None) -> None:
    """Keep some requests in line until prompts or tokens run out."""
    for _ in range(batch.wanted):
        if limit_tokens is not None and job.drawn >= limit_tokens:
            return
        if not job.submit_next(batch):
            return


class _Regeneration:
    """The prompts still to complete, and the file that completions go to."""

    def __init__(
        self,
        target: Target,
        prompts: Sequence[Prompt],
        path: Path,
        mixture: Mixture,
        suffix_share: float,
        max_new_tokens: int,
        seed: int,
        turns: int | None,
    ) -> None:
        self.target, self.path, self.seed, self.turns = target, path, seed, turns
        self.mixture, self.suffix_share = mixture, suffix_share
        self.max_new_tokens, self.bad_rows = max_new_tokens, BadRows()
        self.progress = RegenerationProgress(len(prompts))
        by_id = {prompt.id: prompt for prompt in prompts}
        done = self._read_done(by_id)
        left = [self._talk(prompt, done.get(name, [])) for name, prompt in by_id.items()]
        waiting = [talk for talk in left if talk is not None]
        self.left = deque(sorted(waiting, key=lambda talk: digest(seed, "order", talk.prompt.id)))
        self.tokens_before = self.progress.tokens
        self._open: dict[Request, Talk] = {}
        self._rows: list[dict[str, Any]] = []
        self._flushed = time.monotonic()

    @property
    def drawn(self) -> int:
        """Response tokens of the file and of all completions under way."""
        return self.tokens_before + self.progress.new_tokens

    def _read_done(self, by_id: dict[str, Prompt]) -> dict[str, list[ResponseRow]]:
        """Rows of the prompts that the file completes already, in its order."""
        done: dict[str, list[ResponseRow]] = defaultdict(list)
        check_writable(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        repair_jsonl(self.path)
        for number, fields in enumerate(read_jsonl(self.path), 1):
            row = ResponseRow.from_json(fields, f"{self.path}:{number}")
            self.progress.rows += 1
            self.progress.tokens += len(row.response_ids)
            if row.id not in by_id:
                continue
            done[row.id].append(row)
            params = sampling_params(row.id, self.mixture, self.max_new_tokens, self.seed)
            if (row.temperature, row.top_p) != (params.temperature, params.top_p):
                raise DataError(
                    f"{self.path} holds completions made with other temperatures or another seed",
                    found=f"line {number}: temperature {row.temperature:g}, top_p {row.top_p}",
                    fix="Use the options of the first run, or another file",
                )
        return done

    def _talk(self, prompt: Prompt, done: list[ResponseRow]) -> Talk | None:
        """What is to be completed of a prompt; None where the file has all of it."""
        messages = worded(prompt, self.suffix_share, self.seed)
        if self.turns is None:
            return None if done else Talk(prompt, messages)
        return self._within(taken_up(opening(prompt, messages), done, str(self.path)))

    def _within(self, talk: Talk | None) -> Talk | None:
        """A conversation, unless it has had all its turns."""
        if talk is None or self.turns is None or (talk.turn or 0) >= self.turns:
            return None
        return talk

    def submit_next(self, batch: PromptBatch) -> bool:
        """Submit what is next in line; prompts that are too long are counted and left.

        Returns:
            whether there was anything, for now: completions under way may bring further turns.
        """
        while self.left:
            talk = self.left.popleft()
            turn = talk.turn or 0
            params = sampling_params(
                talk.prompt.id, self.mixture, self.max_new_tokens, self.seed, turn
            )
            ids = self._ids(talk)
            if ids is None:
                continue
            if not ids or len(ids) + self.max_new_tokens > batch.max_len:
                self.progress.skipped += turn == 0  # else the conversation ends here
                continue
            self._open[batch.submit(ids, params)] = talk
            return True
        return False

    def _ids(self, talk: Talk) -> list[int] | None:
        """The prompt of the next completion; none where it is too long, None for a bad row."""
        try:
            if talk.turn:  # what the template refuses here is a completion, and no row is to blame
                return self.target.encode_messages(talk.messages, talk.prompt.tools)
            return prompt_ids(self.target, talk.prompt, self.bad_rows, talk.messages)
        except PromptTooLongError:
            return []
        except RequestError:
            if not talk.turn:
                raise
            return []

    def finish(self, request: Request) -> None:
        """Turn a finished request into a row, and put the next turn first in line."""
        talk = self._open.pop(request)
        prompt = talk.prompt
        row = ResponseRow(
            id=prompt.id,
            domain=prompt.domain,
            prompt_ids=np.array(request.prompt_ids, dtype=np.int32),
            response_ids=np.array(request.output_ids, dtype=np.int32),
            temperature=request.params.temperature,
            finished=request.finish is FinishReason.STOP,
            top_p=request.params.top_p,
            source=prompt.source,
            license=prompt.license,
            prompt=talk.messages[-1]["content"],
            response=self.target.decode(request.output_ids),
            turn=talk.turn,
        )
        self._rows.append(row.to_json())
        self.progress.rows += 1
        self.progress.tokens += len(request.output_ids)
        following = self._within(talk.after(row.response)) if row.finished else None
        if following is not None:
            self.left.appendleft(following)

    def flush_if_due(self) -> None:
        """Write rows every few seconds."""
        if len(self._rows) >= _FLUSH_ROWS or time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write the finished rows to disk."""
        append_jsonl(self.path, self._rows)
        self._rows, self._flushed = [], time.monotonic()
