"""Configuration files: TOML with `extends`, checked against a documented model.

A file holds data only. Defaults live in the models below and nowhere else; `--set a.b=c` wins over
the file, the file over the file it extends.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import inf
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from dspark.config.loading import (
    Layer,
    checked,
    leaf_values,
    load_config,
    merge,
    read_layers,
    valid_keys,
)

__all__ = [
    "DataSection",
    "DrafterSection",
    "Layer",
    "LossSection",
    "OptimSection",
    "RunSection",
    "Section",
    "TappedSection",
    "TrainConfig",
    "at_share",
    "checked",
    "leaf_values",
    "load_config",
    "merge",
    "read_layers",
    "recipe_model",
    "valid_keys",
]


class Section(BaseModel):
    """Base of every configuration model: read-only, unknown keys refused, values as they stand:
    no number from a text or a true, and none that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# ------------------------------------------------------------------------------------ training


class DataSection(Section):
    """`[data]`: what the drafter learns from."""

    responses: list[str] = Field(
        min_length=1,
        description="JSON-lines files (.gz allowed) of the target's answers; looked for as given, "
        "then in the data folder",
    )
    held_out_share: float = Field(
        0.02, ge=0, lt=1, description="share of prompts kept away from training, 0 to 1"
    )
    max_length: int = Field(
        1024, ge=16, description="tokens of a sequence, prompt included; longer ones are cut"
    )
    bad_rows: Literal["stop", "skip"] = Field(
        "stop", description="rows that are no answers: stop at the first, or skip and count them"
    )
    seed: int = Field(0, ge=0, description="seed of the held-out split")
    store: str | None = Field(
        None, description="folder made by `dspark store`; unset computes states on the fly"
    )


class DrafterSection(Section):
    """`[drafter]`: the shape of the drafter; the keys of all kinds.

    Each kind adds its own (`drafters.drafter.Drafter.Recipe`).
    """

    kind: str = Field("dspark", description="name in the drafter registry")
    start: str | None = Field(
        None,
        description="drafter to go on from: a shipped name, a drafter's folder or a run's; unset "
        "begins with fresh weights",
    )
    block_size: int = Field(7, ge=1, le=64, description="draft tokens a round (γ)")
    num_layers: int = Field(2, ge=1, description="draft layers")
    draft_vocab_size: int = Field(
        8192,
        ge=0,
        description="most frequent tokens the drafter can name; 0 is the full vocabulary",
    )
    intermediate_size: int | None = Field(
        None, ge=1, description="width of the draft layers' MLP; unset takes the target's"
    )

    def check_loss(self, loss: LossSection) -> None:
        """Refuse weights of the loss that this drafter cannot be trained with.

        Raises:
            ValueError: saying why.
        """


class TappedSection(DrafterSection):
    """`[drafter]` of drafters that read taps."""

    target_layer_ids: list[int] | None = Field(
        None,
        description="target layers to tap, counted from 0, never the last; unset spreads five "
        "evenly",
    )


Points = list[list[float]]  # [share, weight]
_WEIGHT = "give a number from 0, or [share, weight] points with rising shares of the run, 0 to 1"


def _check_weight(value: Any) -> Any:
    """Refuse what is no weight, in one line for both of its forms."""
    points = value if isinstance(value, list) else [[0, value]]
    if not points or not all(isinstance(point, list) for point in points):
        raise ValueError(_WEIGHT)
    numbers = [number for point in points for number in point]
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise ValueError(_WEIGHT)
    if any(len(point) != 2 for point in points) or not all(0 <= n < inf for n in numbers):
        raise ValueError(_WEIGHT)
    shares = [point[0] for point in points]
    if shares[-1] > 1 or any(right <= left for left, right in pairwise(shares)):
        raise ValueError(_WEIGHT)
    return value


# A weight for the whole run, or points that it goes through in straight lines.
Weight = Annotated[float | Points, BeforeValidator(_check_weight)]


def at_share(weight: float | Points, share: float) -> float:
    """A weight at a share (0 to 1) of the run; outside the points that of the nearest."""
    if not isinstance(weight, list):
        return weight
    for (left, low), (right, high) in pairwise(weight):
        if left <= share < right:
            return low + (high - low) * (share - left) / (right - left)
    return weight[0][1] if share < weight[0][0] else weight[-1][1]


class LossSection(Section):
    """`[loss]`: weights of the terms; each a number, or [share, weight] points over the run."""

    ce: Weight = Field(0.1, description="weight of cross-entropy with the true token")
    soft: Weight = Field(0.0, description="weight of cross-entropy with the target's distribution")
    kl: Weight = Field(0.0, description="weight of the forward divergence KL(p_t ‖ p_d)")
    tv: Weight = Field(0.9, description="weight of the distance ‖p_d - p_t‖₁")
    log_overlap: Weight = Field(0.0, description="weight of -log Σ min(p_d, p_t)")
    greedy: Weight = Field(0.0, description="weight of cross-entropy with the target's arg-max")
    length: Weight = Field(0.0, description="weight of the expected accepted length, negated")
    base: Weight = Field(0.0, description="weight of the same loss of the parallel logits alone")
    free: Weight = Field(
        0.0, description="weight of the same loss where the sequential head reads its own draws"
    )
    bce: Weight = Field(1.0, description="weight of the confidence head's loss")
    decay: float = Field(4.0, gt=0, description="slots until a slot's weight has fallen to 1/e")
    slots: Literal["decay", "dpace"] = Field(
        "decay", description="how slots count: by position, or by D-PACE"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> LossSection:
        if self.ce and self.soft:
            raise ValueError("set ce or soft to 0: one kind of cross-entropy at a time")
        return self


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimSection(Section):
    """`[optim]`: optimiser and learning rate."""

    name: Literal["adamw", "muon"] = Field("adamw", description="optimiser")
    lr: float = Field(1e-3, gt=0, description="highest learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.95), strict=False, description="moment decay rates of AdamW"
    )
    warmup_share: float = Field(0.04, ge=0, le=1, description="share of the run that warms up")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="course of the learning rate after warm-up"
    )
    final_lr_share: float = Field(
        0.05, ge=0, le=1, description="last learning rate, as share of lr"
    )
    grad_clip: float = Field(1.0, ge=0, description="highest gradient norm; 0 does not clip")


class RunSection(Section):
    """`[run]`: how long, how much at once, how often to report and save."""

    minutes: float | None = Field(80.0, gt=0, description="wall-clock limit in minutes")
    steps: int | None = Field(None, ge=1, description="limit in optimiser steps")
    anchors_per_sequence: int = Field(64, ge=1, description="anchors drawn from a sequence")
    sequences_per_step: int = Field(
        8, ge=1, description="sequences of an optimiser step, all processes together"
    )
    accumulate: int = Field(1, ge=1, description="micro-batches of an optimiser step")
    cache_gib: float = Field(
        4.0, ge=0, description="memory for target hidden states kept across epochs, in GiB"
    )
    passes_per_window: int = Field(
        3,
        ge=1,
        description="passes over the sequences whose hidden states fit in cache_gib before "
        "others take their place; each pass draws fresh anchors",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic; auto takes bfloat16 where the machine is fast at it"
    )
    threads: int | None = Field(
        None, ge=1, description="processor threads; unset leaves torch's own"
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, order and anchors")
    log_every: int = Field(10, ge=1, description="optimiser steps between log lines")
    checkpoint_every_minutes: float = Field(5.0, gt=0, description="minutes between checkpoints")
    eval_every_minutes: float = Field(10.0, gt=0, description="minutes between held-out measures")
    keep_at: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.25, 0.5],
        description="shares of the budget (0 to 1) after which the drafter is kept aside, in "
        "`out`/drafter-25 and so on",
    )

    @model_validator(mode="after")
    def _ends(self) -> RunSection:
        if self.minutes is None and self.steps is None:
            raise ValueError("set minutes, steps or both, else the run never ends")
        return self


class TrainConfig(Section):
    """Everything `dspark train` reads."""

    target: str = Field("smollm2-135m", description="known name, folder or Hugging Face id")
    out: str = Field(description="folder for checkpoints, logs and the finished drafter")
    data: DataSection
    drafter: DrafterSection = Field(default_factory=DrafterSection)
    loss: LossSection = Field(default_factory=LossSection)
    optim: OptimSection = Field(default_factory=OptimSection)
    run: RunSection = Field(default_factory=RunSection)

    @model_validator(mode="after")
    def _taught(self) -> TrainConfig:
        self.drafter.check_loss(self.loss)
        return self


@cache
def recipe_model(section: type[DrafterSection]) -> type[TrainConfig]:
    """`TrainConfig` whose `[drafter]` has the keys of one kind."""
    field = (section, Field(default_factory=section))
    return create_model("TrainConfig", __base__=TrainConfig, drafter=field)
