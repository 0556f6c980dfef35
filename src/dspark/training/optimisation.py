"""Optimisers, learning-rate schedules, and weights of the loss that follow a schedule."""

from __future__ import annotations

import math

import torch

from dspark.config import LossSection, OptimSection, at_share
from dspark.drafters.drafter import Drafter
from dspark.maths.losses import LossWeights


def make_optimisers(model: Drafter, config: OptimSection) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the layers' matrices and AdamW for the rest.

    Muon's update is orthogonalised, so it suits hidden matrices and not embeddings, norms or
    the sequential head's tables.
    """
    params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = model.matrix_modules
    matrices = [p for name, p in params if p.ndim == 2 and name.startswith(hidden)]
    if config.name == "adamw":
        matrices = []
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in params if id(p) not in chosen]
    adamw = torch.optim.AdamW(
        rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(
        matrices,
        lr=config.lr,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]


MIN_WARMUP_STEPS = 100


def lr_share(progress: float, step: int | None, config: OptimSection) -> float:
    """Learning rate as a share of ``config.lr`` at ``progress`` (0 to 1) through the run.

    In a run limited by minutes (``step`` is given) the warm-up lasts a number of steps too: a slow
    start must not cut it short.
    """
    warmup = config.warmup_share
    started = 1.0 if step is None else (step + 1) / MIN_WARMUP_STEPS
    if warmup and (progress < warmup or started < 1):
        return max(min(progress / warmup, started), 1e-3)
    rest = min(max((progress - warmup) / max(1 - warmup, 1e-9), 0.0), 1.0)
    if config.schedule == "constant":
        return 1.0
    shape = 1 - rest if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * rest))
    return config.final_lr_share + (1 - config.final_lr_share) * shape


def loss_weights_at(section: LossSection, progress: float) -> LossWeights:
    """The weights of the loss at ``progress`` (0 to 1) through the run."""
    terms = {
        name: at_share(getattr(section, name), progress)
        for name in LossSection.model_fields
        if name not in ("decay", "slots")
    }
    return LossWeights(**terms, decay=section.decay, slots=section.slots)
