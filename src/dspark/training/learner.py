"""A drafter that learns: the parts of a run, one optimiser step, the held-out measure.

One step: states → batches → loss → backward → update. Everything that decides what a step sees is a
function of its number. Each loss term is a mean over the whole step, so the result does not depend
on how the step is cut: into micro-batches, or between processes.

Suffixes: A anchors, K block slots.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dspark.config import TrainConfig
from dspark.data.responses import Response
from dspark.data.states import SequenceStates
from dspark.data.store import StoredStates, origin_of
from dspark.drafters.training_batch import TrainingBatch
from dspark.errors import ConfigError
from dspark.maths.losses import DraftLoss, LossWeights, StepTotals
from dspark.targets.target import Target, load_target
from dspark.training.batches import Visit, share, training_sequences, visits
from dspark.training.metrics import Meter, PhaseTimer
from dspark.training.optimisation import loss_weights_at, lr_share, make_optimisers
from dspark.training.packing import pack
from dspark.training.parallel import Parallel
from dspark.training.sequences import AnchorDraw
from dspark.training.setup import build_drafter, load_data, pick_training_dtype
from dspark.training.states import StateCache, bytes_per_sequence
from dspark.training.warm_start import begun

HELD_OUT_SEQUENCES = 96
Report = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Counters:
    """Progress that survives a restart."""

    step: int = 0
    elapsed_s: float = 0.0
    anchors: int = 0


class Learner:
    """What is trained, on what, and how one step of it goes.

    Args:
        config: what to train, on what, for how long.
        report: called with a record at every log line and held-out measure, in the main process.
        target: a loaded target, or None to load ``config.target``.
    """

    def __init__(
        self, config: TrainConfig, report: Report | None = None, target: Target | None = None
    ) -> None:
        self.parallel, self.report = Parallel(), report or (lambda record: None)
        with self.parallel.main_first():  # it may have to put a half-swapped state back
            self.config, self.start = begun(config)
        config = self.config
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.out = Path(config.out)
        # What is fastest is measured, and processes must not come to different results.
        self.dtype = self.parallel.gather(pick_training_dtype(config.run.dtype))[0]
        name = str(self.dtype).removeprefix("torch.")
        self.target = target or load_target(config.target, name, str(self.parallel.device))
        self.dropped: Counter[str] = Counter()
        self.train, self.held_out = load_data(config, self.target, self.dropped)
        self.drafter, self.coverage = build_drafter(
            config, self.target, self.train, self.held_out, self.start
        )
        self.optimisers = make_optimisers(self.drafter, config.optim)
        self.loss_module = self.parallel.prepare(self.drafter)
        self.budget = int(config.run.cache_gib * 2**30)
        taps = self.drafter.config.target_layer_ids
        self.sizes = [bytes_per_sequence(r, self.target, len(taps)) for r in self.train]
        self.cache: StateCache | StoredStates = StateCache(self.target, taps, self.budget)
        self.held_out_states: StateCache | StoredStates = StateCache(self.target, taps, 0)
        if config.data.store is not None:
            stored = StoredStates(config.data.store, origin_of(self.target, taps))
            stored.check([*self.train, *self.held_out])
            self.cache = self.held_out_states = stored
        self.counters, self.timer, self.meter = Counters(), PhaseTimer(), Meter()

    # ---- one step -------------------------------------------------------------------------

    def visits(self) -> Iterator[Visit]:
        """The steps from the present one on."""
        run, seed = self.config.run, self.config.run.seed
        order = visits(self.sizes, self.budget, run.sequences_per_step, run.passes_per_window, seed)
        return islice(order, self.counters.step, None)

    def _batches(self, visit: Visit) -> list[TrainingBatch]:
        """This process's micro-batches of a step."""
        parallel = self.parallel
        parts = share(visit.indices, parallel.rank, parallel.world, self.config.run.accumulate)
        made = [self._batch([self.train[i] for i in part], visit.epoch) for part in parts]
        return [batch for batch in made if batch is not None]

    def _batch(self, responses: list[Response], epoch: int) -> TrainingBatch | None:
        with self.timer.phase("target states"):
            states = self.cache.get(responses)
        with self.timer.phase("batch"):
            run = self.config.run
            return self._pack(
                responses, states, AnchorDraw(run.anchors_per_sequence, run.seed, epoch)
            )

    def _pack(
        self, responses: list[Response], states: list[SequenceStates], draw: AnchorDraw
    ) -> TrainingBatch | None:
        batch = pack(self.drafter, training_sequences(responses, states), draw)
        return None if batch is None else batch.to(self.target.device)

    def _autocast(self) -> Any:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.target.device.type, self.dtype, enabled=enabled)

    def progress(self) -> float:
        """Share of the budget that is used, 0 to 1."""
        run = self.config.run
        shares = [0.0]
        if run.minutes is not None:
            shares.append(self.counters.elapsed_s / (60 * run.minutes))
        if run.steps is not None:
            shares.append(self.counters.step / run.steps)
        return min(max(shares), 1.0)

    @property
    def weights(self) -> LossWeights:
        """Weights of the loss at this place in the run."""
        return loss_weights_at(self.config.loss, self.progress())

    def step(self, visit: Visit) -> None:
        """One optimiser step.

        Raises:
            ConfigError: when loss or gradient is no finite number; the weights are as before.
        """
        batches = self._batches(visit)
        decay = self.drafter.loss_weights(self.weights).decay
        valid = [batch.label_valid_AK for batch in batches]
        mine = StepTotals.of(valid, decay)
        weight, blocks, anchors = self.parallel.total(
            mine.weight, mine.anchors, sum(map(len, valid))
        )
        if not anchors:
            return
        loss = self._backward(batches, StepTotals(weight, blocks))
        with self.timer.phase("optimiser"):
            self._update(loss)
        self.counters.anchors += int(anchors)
        self.meter.steps += 1

    def _backward(self, batches: list[TrainingBatch], totals: StepTotals) -> float:
        """Gradients of the step's loss; returns this process's share of it."""
        total = 0.0
        # Gradients are exchanged in a backward, so a process without a batch has one as well.
        parts: list[TrainingBatch | None] = [*batches] or [None]
        for number, batch in enumerate(parts, 1):
            with self.parallel.micro_batch(self.loss_module, last=number == len(parts)):
                with self.timer.phase("forward and loss"), self._autocast():
                    loss: DraftLoss = self.loss_module(batch, self.weights, totals)
                with self.timer.phase("backward"):
                    self.parallel.backward(loss.total)
            if batch is not None:
                self.meter.add(loss, batch.label_valid_AK, steps=0)
                total += float(loss.total.detach())
        return total

    def _update(self, share_of_loss: float) -> None:
        """Clip the gradient and step the optimisers."""
        (loss,) = self.parallel.total(share_of_loss)
        parameters = [p for p in self.drafter.parameters() if p.grad is not None]
        size, optim = loss, self.config.optim
        if optim.grad_clip:
            size += float(torch.nn.utils.clip_grad_norm_(parameters, optim.grad_clip))
        if not math.isfinite(size):
            raise ConfigError(
                f"Training fell apart at step {self.counters.step}",
                found=f"loss {loss}",
                fix="Lower optim.lr; the last saved state is whole",
            )
        timed = self.config.run.steps is None
        rate = optim.lr * lr_share(self.progress(), self.counters.step if timed else None, optim)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    @torch.no_grad()
    def measure_held_out(self) -> dict[str, Any]:
        """Teacher-forced metrics on held-out prompts, the same anchors every time."""
        meter = Meter()
        chosen = self.held_out[:HELD_OUT_SEQUENCES]
        size = self.config.run.sequences_per_step
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            held = self.held_out_states.get(part)
            batch = self._pack(part, held, AnchorDraw(32, seed=0, epoch=0))
            if batch is not None:
                with self._autocast():
                    meter.add(self.drafter.loss(batch, self.weights), batch.label_valid_AK)
        summary: dict[str, Any] = meter.summary() if meter.steps else {}
        summary.pop("anchors_per_s", None)
        return summary
