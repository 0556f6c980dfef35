"""Rounds to fit an informed confidence head with: clues of each slot, and how it would have gone.

As in `calibration.collect` every draft is verified whole and answers are collected whole. What is
kept of a slot is the very probability that its prefix passes, given the tokens before it, and not
just whether it did: Π_{j<k} min(1, p_t(x_j) / p_d(x_j)) · c*_k under token verification, and
`maths.block_verification.block_survival` under block verification.

Suffixes: R requests, N rounds, K block slots, C clues, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dspark.artifacts import atomic_write_bytes
from dspark.calibration.collect import OnProgress, Progress
from dspark.calibration.prompts import MAX_PROMPT, in_check, submit
from dspark.core import BLOCK, DEFAULT_RULE, DraftBlock, Request, SamplingParams, Verdict
from dspark.data.bad_rows import BadRows
from dspark.data.prompts import Prompt
from dspark.drafters.dspark import DSparkDrafter
from dspark.engine.engine import Engine
from dspark.errors import DataError
from dspark.maths.block_verification import block_survival
from dspark.maths.verification import drafted_probability, overlap
from dspark.targets.target import Target

_PART = 2048  # rounds of a part file, some 20 MB


@dataclass(slots=True, eq=False)
class ClueRounds:
    """Rounds of some answers, side by side.

    Attributes:
        clues_NKC: float16, see `drafters.informed.clues`.
        goal_NK: probability that draft tokens 1 … k all pass, given those before k.
        known_NK: the round could say so: the slot was judged, and no stop token lies before it.
        accepted_N: draft tokens that did pass.
        prompts: whose answers these are, in order, and rounds of each.
    """

    clues_NKC: Tensor
    goal_NK: Tensor
    known_NK: Tensor
    accepted_N: Tensor
    prompts: list[tuple[str, int]]

    def __len__(self) -> int:
        return len(self.accepted_N)

    def split(self, check_share: float) -> tuple[ClueRounds, ClueRounds]:
        """Answers to fit on, and a share of them to judge by; which, follows from prompt ids."""
        return self._part(check_share, False), self._part(check_share, True)

    def _part(self, check_share: float, held: bool) -> ClueRounds:
        mine = [in_check(name, check_share) == held for name, _ in self.prompts]
        counts = torch.tensor([count for _, count in self.prompts])
        rows_N = torch.tensor(mine).repeat_interleave(counts)
        prompts = [pair for pair, chosen in zip(self.prompts, mine, strict=True) if chosen]
        clues_NKC, goal_NK, known_NK = self.clues_NKC, self.goal_NK, self.known_NK
        return ClueRounds(
            clues_NKC[rows_N], goal_NK[rows_N], known_NK[rows_N], self.accepted_N[rows_N], prompts
        )


def collect_clues(
    target: Target,
    drafter: DSparkDrafter,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    folder: Path,
    *,
    rounds: int,
    slots: int,
    seed: int = 0,
    verification: str = DEFAULT_RULE,
    on_progress: OnProgress = lambda progress: None,
    bad_rows: BadRows | None = None,
) -> ClueRounds:
    """Answer prompts until there are enough rounds, or prompts run out.

    Args:
        drafter: with a confidence head.
        params: how answers are drawn, above temperature 0.
        folder: where finished answers' rounds are kept; a run that finds some goes on there.
        rounds: wanted; answers under way by then are finished and count as well.
        slots: answers made at the same time.
        verification: the rule by which drafts are accepted.
        on_progress: called after every step.
        bad_rows: what to do with prompts that the target cannot take; None stops at the first.

    Raises:
        DataError: the folder cannot be written, or a part in it is damaged.
    """
    size = drafter.config.block_size
    room = MAX_PROMPT + params.max_new_tokens
    build = partial(
        Engine, target, drafter, f"fixed:{size}", slots, room, verification=verification
    )
    job = _Job(build, drafter, folder)
    job.bad_rows = bad_rows or job.bad_rows
    drafter.keep_clues = True
    try:
        for prompt in prompts:
            while len(job.open) == slots:
                job.step(on_progress)
            if job.begun >= rounds:
                break
            if prompt.id not in job.kept:
                job.start(prompt, params, seed)
        while job.open:
            job.step(on_progress)
        on_progress(job.progress)  # also where everything was there
    finally:  # finished answers are kept whatever happens
        drafter.keep_clues = False
        job.flush()
    if not job.parts:
        raise DataError(
            "There are no rounds to fit with",
            found=f"{len(prompts)} prompts, {job.skipped} of them too long",
            fix="Give more prompts",
        )
    return _together([_read(path) for path in job.parts])


@dataclass(slots=True)
class _Answer:
    """Rounds of one request, one row each."""

    prompt: str
    clues: list[Tensor] = field(default_factory=list)
    goal: list[Tensor] = field(default_factory=list)
    known: list[Tensor] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


class _Job:
    """Answers under way, those finished since the last part file, and the part files."""

    def __init__(self, build: Callable[..., Engine], drafter: DSparkDrafter, folder: Path) -> None:
        self.engine, self.drafter, self.folder = build(on_verdict=self._watch), drafter, folder
        self.parts = sorted(folder.glob("part-*.safetensors"))
        self.kept = dict(pair for path in self.parts for pair in _read(path, rows=False).prompts)
        self.open: dict[Request, _Answer] = {}
        self.finished: list[_Answer] = []
        self.skipped = 0
        self.bad_rows = BadRows()

    @property
    def begun(self) -> int:
        """Rounds so far, answers under way included."""
        waiting = [*self.finished, *self.open.values()]
        return sum(self.kept.values()) + sum(len(answer.accepted) for answer in waiting)

    @property
    def progress(self) -> Progress:
        return Progress(fit_rounds=self.begun, skipped=self.skipped)

    def start(self, prompt: Prompt, params: SamplingParams, seed: int) -> None:
        request = submit(self.engine, prompt, params, seed, self.bad_rows)
        if request is None:
            self.skipped += 1
        else:
            self.open[request] = _Answer(prompt.id)

    def step(self, on_progress: OnProgress) -> None:
        for output in self.engine.step():
            if output.finished:
                self.finished.append(self.open.pop(output.request))
        if sum(len(answer.accepted) for answer in self.finished) >= _PART:
            self.flush()
        on_progress(self.progress)

    def _watch(
        self,
        requests: Sequence[Request],
        target_RKV: Tensor,
        drafts: DraftBlock,
        verify_len: Sequence[int],
        verdict: Verdict,
    ) -> None:
        ids_RK, probs_RKV, clues_RKC = drafts.draft_ids_RK, drafts.draft_probs_RKV, drafts.clues_RKC
        assert probs_RKV is not None
        assert clues_RKC is not None
        goal = block_survival if self.engine.verification == BLOCK else _token_survival
        goal_RK = goal(target_RKV[:, : ids_RK.shape[1]], probs_RKV, ids_RK, self.drafter.d2t)
        stop_ids = torch.tensor(sorted(self.engine.target.stop_ids), device=ids_RK.device)
        stop_RK = torch.isin(ids_RK, stop_ids)
        judged_RK = torch.arange(ids_RK.shape[1]) < torch.tensor(verify_len)[:, None]
        known_RK = judged_RK & (stop_RK.cumsum(1) - stop_RK.long() == 0).cpu()
        for r, request in enumerate(requests):
            answer = self.open[request]
            answer.clues.append(clues_RKC[r].cpu().half())
            answer.goal.append(goal_RK[r].clamp(0, 1).float().cpu())
            answer.known.append(known_RK[r])
            answer.accepted.append(verdict.accepted[r])

    def flush(self) -> None:
        """Write the finished answers to disk."""
        whole = [answer for answer in self.finished if answer.accepted]
        if not whole:
            return
        tensors = {
            "clues": torch.stack([row for answer in whole for row in answer.clues]),
            "goal": torch.stack([row for answer in whole for row in answer.goal]),
            "known": torch.stack([row for answer in whole for row in answer.known]),
            "accepted": torch.tensor([n for answer in whole for n in answer.accepted]),
        }
        prompts = [(answer.prompt, len(answer.accepted)) for answer in whole]
        number = int(self.parts[-1].stem.removeprefix("part-")) + 1 if self.parts else 0
        path = self.folder / f"part-{number:05}.safetensors"
        atomic_write_bytes(path, save(tensors, metadata={"prompts": json.dumps(prompts)}))
        self.parts.append(path)
        self.kept |= prompts
        self.finished = []


def _token_survival(
    target_RKV: Tensor, probs_RKV: Tensor, ids_RK: Tensor, d2t: Tensor | None
) -> Tensor:
    """Probability [R, K] that each prefix passes, given the tokens before its last."""
    drawn_RK = drafted_probability(probs_RKV, ids_RK, d2t, target_RKV.shape[2])
    ratio_RK = target_RKV.gather(-1, ids_RK[..., None])[..., 0] / drawn_RK
    passed_RK = ratio_RK.clamp(max=1).cumprod(1)
    before_RK = torch.cat([torch.ones_like(passed_RK[:, :1]), passed_RK[:, :-1]], 1)
    return before_RK * overlap(target_RKV, probs_RKV, d2t)


def _read(path: Path, rows: bool = True) -> ClueRounds:
    try:
        with safe_open(path, "pt") as file:
            prompts = [(str(name), int(n)) for name, n in json.loads(file.metadata()["prompts"])]
            names = ("clues", "goal", "known", "accepted")
            clues, goal, known, accepted = (
                file.get_tensor(name) if rows else torch.empty(0) for name in names
            )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"Cannot read {path}", found=f"{type(error).__name__}: {error}", fix="Remove it"
        ) from error
    return ClueRounds(clues, goal, known, accepted, prompts)


def _together(parts: Sequence[ClueRounds]) -> ClueRounds:
    return ClueRounds(
        torch.cat([part.clues_NKC for part in parts]),
        torch.cat([part.goal_NK for part in parts]),
        torch.cat([part.known_NK for part in parts]),
        torch.cat([part.accepted_N for part in parts]),
        [pair for part in parts for pair in part.prompts],
    )
