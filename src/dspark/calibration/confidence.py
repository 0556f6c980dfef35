"""Fit an informed confidence head to a drafter's own rounds (`drafters.informed`).

What is fitted is the product: Π_{i≤k} σ(z_i) is to predict that draft tokens 1 … k all pass, so
that a token drawn against the odds lowers what is said of all behind it.

Suffixes: N rounds, K block slots, C clues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dspark.calibration.clues import ClueRounds, collect_clues
from dspark.calibration.collect import OnProgress, about
from dspark.core import DEFAULT_RULE, SamplingParams
from dspark.data.bad_rows import BadRows
from dspark.data.prompts import Prompt
from dspark.drafters.drafter import Drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.dspark.informed import InformedConfidence
from dspark.errors import CheckpointError, DataError, IncompatibleDrafterError
from dspark.maths.reliability import auroc, mean_known
from dspark.targets.target import Target

SCHEMA = "dspark.confidence_fit/1"
CHECK_SHARE = 0.1  # of the answers, to judge the head by
UNITS, EPOCHS, BATCH, RATE, DECAY, DROPOUT = 64, 6, 256, 2e-3, 0.1, 0.2

_MEANS = ("auroc_linear", "auroc")

OnStep = Callable[[int, int], None]


def run(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    folder: Path,
    *,
    rounds: int,
    slots: int,
    seed: int = 0,
    verification: str = DEFAULT_RULE,
    on_progress: OnProgress = lambda progress: None,
    on_step: OnStep = lambda done, steps: None,
    bad_rows: BadRows | None = None,
) -> tuple[InformedConfidence, dict[str, Any]]:
    """Collect rounds, fit a head to most answers and judge it by the others.

    Args:
        prompts: in the order they are taken; better not those to calibrate with.
        params: how answers are drawn, above temperature 0.
        folder: where the rounds of an unfinished run are kept; the caller removes it.
        rounds: wanted in all.
        slots: answers made at the same time.
        seed: decides draws, first weights and order.
        verification: the rule by which drafts are accepted.
        on_progress, on_step: called after every step of the engine, and of the fit.
        bad_rows: see `collect_clues`.

    Returns:
        the head, and the fields of schema dspark.confidence_fit/1.

    Raises:
        IncompatibleDrafterError: the drafter has no confidence head to start from.
        DataError: there are too few rounds, or `folder` cannot be written or is damaged.
        CheckpointError: the drafter's states are not finite.
    """
    if not isinstance(drafter, DSparkDrafter) or drafter.confidence_head is None:
        raise IncompatibleDrafterError(
            "The drafter has no confidence head to start from",
            found=f"kind {drafter.config.kind}",
            fix="Use a DSpark drafter that was trained with one",
        )
    found = collect_clues(
        target,
        drafter,
        prompts,
        params,
        folder,
        rounds=rounds,
        slots=slots,
        seed=seed,
        verification=verification,
        on_progress=on_progress,
        bad_rows=bad_rows,
    )
    fitted, held = found.split(CHECK_SHARE)
    head = fit(fitted, seed=seed, on_step=on_step)
    fitted_on = {"fit_rounds": len(fitted), "fit_prompts": len(fitted.prompts)}
    described = about(target, drafter, params, verification) | fitted_on
    return head, described | judge(head, drafter, held)


def fit(
    rounds: ClueRounds, *, seed: int = 0, on_step: OnStep = lambda done, steps: None
) -> InformedConfidence:
    """A head fitted to rounds.

    Args:
        seed: decides first weights and order.
        on_step: called with steps done and steps in all.

    Raises:
        DataError: there are fewer rounds than one batch has.
        CheckpointError: clues are not finite.
    """
    if len(rounds) < BATCH:
        raise DataError(
            "There are too few rounds to fit a confidence head",
            found=f"{len(rounds)}, at least {BATCH} are needed",
            fix="Give more prompts, or a larger --rounds",
        )
    mean_C, scale_C = _moments(rounds.clues_NKC)
    if not (mean_C.isfinite() & scale_C.isfinite()).all():
        raise CheckpointError(
            "The drafter's states are not numbers that a confidence head could be fitted to",
            fix="Its weights are damaged: copy or train it again",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inner, outer = nn.Linear(len(mean_C), UNITS), nn.Linear(UNITS, 1)
        net = nn.Sequential(nn.Dropout(DROPOUT), inner, nn.GELU(), outer)
        optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
        per_epoch = len(rounds) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, EPOCHS * per_epoch)
        for epoch in range(EPOCHS):
            order = torch.randperm(len(rounds)).split(BATCH)[:per_epoch]
            for step, rows in enumerate(order, epoch * per_epoch + 1):
                clues_NKC = (rounds.clues_NKC[rows].float() - mean_C) / scale_C
                logits_NK = net(clues_NKC).squeeze(-1)
                loss = product_loss(logits_NK, rounds.goal_NK[rows], rounds.known_NK[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                on_step(step, EPOCHS * per_epoch)
    with torch.no_grad():  # the head takes clues as they are
        weight_HC = inner.weight / scale_C
        bias_H = inner.bias - weight_HC @ mean_C
        return InformedConfidence(weight_HC, bias_H, outer.weight[0].clone(), outer.bias[0].clone())


def product_loss(logits_NK: Tensor, goal_NK: Tensor, known_NK: Tensor) -> Tensor:
    """Cross-entropy of Π_{i≤k} σ(z_i) against the probability that prefix k passes, where known."""
    log_NK = F.logsigmoid(logits_NK).cumsum(1).clamp(max=-1e-6)  # log(1 - 1) is not finite
    losses_NK = -(goal_NK * log_NK + (1 - goal_NK) * torch.log(-torch.expm1(log_NK)))
    return losses_NK[known_NK].mean()


def _moments(clues_NKC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each clue, float32 [C]; 1 for one that never changes."""
    flat, count = clues_NKC.flatten(0, 1), clues_NKC.shape[0] * clues_NKC.shape[1]
    mean_C = sum(part.float().sum(0) for part in flat.split(2**14)) / count
    square_C = sum((part.float() - mean_C).square().sum(0) for part in flat.split(2**14)) / count
    spread_C = square_C.sqrt()
    return mean_C, torch.where(spread_C > 1e-6, spread_C, torch.ones_like(spread_C))


def judge(head: InformedConfidence, drafter: DSparkDrafter, rounds: ClueRounds) -> dict[str, Any]:
    """How well survival by the linear head and by this one tells accepted prefixes from others.

    Returns:
        `rounds`, `prompts`, the means over positions, and `positions`, each with k, rounds,
        base_rate, auroc_linear and auroc.
    """
    parts = rounds.clues_NKC.split(1024)
    linear_NK = torch.cat([drafter.linear_clue(part).float() for part in parts])
    informed_NK = torch.cat([head.logits(part.float()) for part in parts])
    linear, informed = (
        F.logsigmoid(z_NK.double()).cumsum(1).numpy() for z_NK in (linear_NK, informed_NK)
    )
    positions = []
    for k in range(rounds.goal_NK.shape[1]):
        rows = rounds.known_NK[:, k].numpy()
        passed = (rounds.accepted_N > k).numpy()[rows]
        positions.append(
            {
                "k": k + 1,
                "rounds": len(passed),
                "base_rate": float(passed.mean()) if len(passed) else math.nan,
                "auroc_linear": auroc(linear[rows, k], passed),
                "auroc": auroc(informed[rows, k], passed),
            }
        )
    means = {f"{name}_mean": mean_known([row[name] for row in positions]) for name in _MEANS}
    return {"rounds": len(rounds), "prompts": len(rounds.prompts), **means, "positions": positions}
