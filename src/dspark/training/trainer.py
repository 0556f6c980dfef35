"""The training loop (DSpark §3.3): frozen target, packed anchor blocks, fused loss.

One optimiser step: states → batch → loss → backward → update. Everything that decides what a step
sees is a function of its number, so a run that was killed continues the same curve.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dspark.artifacts import (
    append_jsonl,
    atomic_write_text,
    provenance,
    read_jsonl,
    repair_jsonl,
)
from dspark.config import TrainConfig
from dspark.data.files import find_data
from dspark.data.responses import Response, token_frequencies
from dspark.errors import ConfigError
from dspark.maths.losses import LossWeights
from dspark.models.checkpoint import save_drafter
from dspark.models.drafter import Drafter
from dspark.models.target import Target, load_target
from dspark.models.training_data import AnchorDraw, SequenceStates, TrainingBatch
from dspark.training.batches import Visit, training_sequences, visits
from dspark.training.guards import check_writable, hold_interrupt, quiet_denormals
from dspark.training.metrics import Meter, PhaseTimer
from dspark.training.optimisation import lr_share, make_optimisers
from dspark.training.recipe import check_same, fixed_part, portable
from dspark.training.setup import build_drafter, load_data, pick_training_dtype
from dspark.training.snapshot import load_snapshot, read_counters, reading, save_snapshot
from dspark.training.states import StateCache, bytes_per_sequence

HELD_OUT_SEQUENCES = 96
LOG = "train_log.jsonl"
Report = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Counters:
    """Progress that survives a restart."""

    step: int = 0
    elapsed_s: float = 0.0
    anchors: int = 0


class Trainer:
    """One run; ``run()`` goes until the budget of minutes or steps is used.

    Args:
        config: what to train, on what, for how long.
        report: called with a record at every log line and held-out measure.
        target: a loaded target, or None to load ``config.target``.
    """

    def __init__(
        self, config: TrainConfig, report: Report | None = None, target: Target | None = None
    ) -> None:
        self.config, self.report = config, report or (lambda record: None)
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.out = Path(config.out)
        self.dtype = pick_training_dtype(config.run.dtype)
        name = str(self.dtype).removeprefix("torch.")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.target = target or load_target(config.target, name, device)
        self.train, self.held_out = load_data(config, self.target)
        self.drafter, self.coverage = build_drafter(config, self.target, self.train, self.held_out)
        self.weights = LossWeights(**config.loss.model_dump())
        self.optimisers = make_optimisers(self.drafter, config.optim)
        budget = int(config.run.cache_gib * 2**30)
        taps = self.drafter.config.target_layer_ids
        self.cache = StateCache(self.target, taps, budget)
        self.sizes = [bytes_per_sequence(r, self.target, len(taps)) for r in self.train]
        self.counters, self.timer, self.meter = Counters(), PhaseTimer(), Meter()

    # ---- one step -------------------------------------------------------------------------

    def visits(self) -> Iterator[Visit]:
        """The steps from the present one on."""
        run, seed = self.config.run, self.config.run.seed
        order = visits(
            self.sizes, self.cache.budget, run.sequences_per_step, run.passes_per_window, seed
        )
        return islice(order, self.counters.step, None)

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
        batch = self.drafter.training_batch(training_sequences(responses, states), draw)
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

    def step(self, visit: Visit) -> None:
        """One optimiser step.

        Raises:
            ConfigError: when loss or gradient is no finite number; the weights are as before.
        """
        batch = self._batch([self.train[i] for i in visit.indices], visit.epoch)
        if batch is None:
            return
        with self.timer.phase("forward and loss"), self._autocast():
            loss = self.drafter.loss(batch, self.weights)
        with self.timer.phase("backward"):
            loss.total.backward()
        with self.timer.phase("optimiser"):
            parameters = [p for p in self.drafter.parameters() if p.grad is not None]
            size = float(loss.total.detach())
            if self.config.optim.grad_clip:
                norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.grad_clip)
                size += float(norm)
            if not math.isfinite(size):
                raise ConfigError(
                    f"Training fell apart at step {self.counters.step}",
                    found=f"loss {float(loss.total.detach())}",
                    fix="Lower optim.lr; the last saved state is whole",
                )
            optim = self.config.optim
            timed = self.config.run.steps is None
            step = self.counters.step if timed else None
            rate = optim.lr * lr_share(self.progress(), step, optim)
            for optimiser in self.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = rate
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        self.counters.anchors += len(batch.label_valid_AK)
        self.meter.add(loss, batch.label_valid_AK)

    @torch.no_grad()
    def measure_held_out(self) -> dict[str, Any]:
        """Teacher-forced metrics on held-out prompts, the same anchors every time."""
        meter = Meter()
        chosen = self.held_out[:HELD_OUT_SEQUENCES]
        size = self.config.run.sequences_per_step
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            held = StateCache(self.target, self.cache.tap_ids, 0).get(part)
            batch = self._pack(part, held, AnchorDraw(32, seed=0, epoch=0))
            if batch is not None:
                with self._autocast():
                    meter.add(self.drafter.loss(batch, self.weights), batch.label_valid_AK)
        summary: dict[str, Any] = meter.summary() if meter.steps else {}
        summary.pop("anchors_per_s", None)
        return summary

    # ---- the run --------------------------------------------------------------------------

    def resume(self) -> bool:
        """Take up the state below ``out`` if there is one.

        Raises:
            ConfigError: when it belongs to another recipe.
            CheckpointError: when it is damaged.
        """
        saved = read_counters(self.out)
        if saved is None:
            self._trim_log()
            return False
        with reading(self.out):
            recipe, meter = saved.pop("recipe"), saved.pop("meter", None)
            counters = Counters(**saved)
            check_same(recipe, self._recipe(), self.out)
            self.meter = Meter() if meter is None else Meter.restored(meter)
        load_snapshot(self.out, self.drafter, self.optimisers)
        self.drafter.bind(self.target)  # the restored draft vocabulary picks the head's rows
        if self.drafter.d2t is not None:
            seen = token_frequencies(self.train, self.target.spec.vocab_size)
            self.coverage = float(seen[self.drafter.d2t.cpu().numpy()].sum() / seen.sum())
        self.counters = counters
        self._trim_log()
        return True

    def _recipe(self) -> dict[str, Any]:
        return fixed_part(self.config, self.drafter.config.mask_token_id)

    def _trim_log(self) -> None:
        """Drop the log lines of steps that a kill threw back and that will be done again."""
        path = self.out / LOG
        if not path.exists():
            return
        repair_jsonl(path)
        rows = list(read_jsonl(path))
        kept = [row for row in rows if row["step"] <= self.counters.step]
        if len(kept) < len(rows):
            atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def save(self) -> None:
        """Write the resumable state and the drafter as it stands."""
        counters = asdict(self.counters) | {"recipe": self._recipe(), "meter": self.meter.state()}
        save_snapshot(self.out, self.drafter, self.optimisers, counters)
        self.save_drafter(self.out / "drafter")

    def save_drafter(self, folder: Path, held_out: dict[str, Any] | None = None) -> None:
        """Write the drafter in DeepSpec's layout with its provenance."""
        record = provenance(
            "dspark train",
            {"run": self.config.run.seed, "data": self.config.data.seed},
            [find_data(source) for source in self.config.data.responses],
        )
        record["config"] = portable(self.config)
        record["training"] = asdict(self.counters) | {
            "answers": len(self.train),
            "response_tokens": sum(len(r.response_ids) for r in self.train),
            "draft_vocabulary_coverage": round(self.coverage, 5),
            "held_out": held_out,
        }
        text = json.dumps(record, indent=2) + "\n"
        save_drafter(self.drafter, folder, extra_files={"provenance.json": text})

    def _keep_aside(self) -> None:
        """Keep the drafter as it stands at the configured shares of the budget."""
        for share in self.config.run.keep_at:
            folder = self.out / f"drafter-{round(100 * share)}"
            if self.progress() >= share and not folder.exists():
                self.save_drafter(folder)

    def run(self) -> dict[str, Any]:
        """Train to the end of the budget; returns the last held-out metrics.

        A KeyboardInterrupt saves the state before it goes on its way.

        Raises:
            CheckpointError: when ``out`` cannot be written; the state before stays.
        """
        check_writable(self.out)
        self.resume()
        try:
            self._loop()
        except KeyboardInterrupt:
            self.save()
            raise
        self.save()
        measured = self.measure_held_out()
        if measured:
            self._log({"kind": "held_out", **measured})
            self.save_drafter(self.out / "drafter", measured)
        return measured

    def _loop(self) -> None:
        run = self.config.run
        last_save = last_eval = last = time.perf_counter()
        for visit in self.visits():
            if self.progress() >= 1:
                return
            with hold_interrupt():
                self.step(visit)
                self.counters.step += 1
                now = time.perf_counter()
                self.counters.elapsed_s += now - last
                if self.counters.step % run.log_every == 0 and self.meter.steps:
                    self._log({"kind": "train", **self.meter.summary()})
                    self.meter = Meter()
            self._keep_aside()
            if now - last_eval > 60 * run.eval_every_minutes and self.held_out:
                self._log({"kind": "held_out", **self.measure_held_out()})
                last_eval = time.perf_counter()
            if now - last_save > 60 * run.checkpoint_every_minutes:
                self.save()
                last_save = time.perf_counter()
            last = time.perf_counter()
            self.meter.leave_out(last - now)

    def _log(self, record: dict[str, Any]) -> None:
        minutes = self.counters.elapsed_s / 60
        record |= {
            "step": self.counters.step,
            "minutes": round(minutes, 2),
            "total_anchors": self.counters.anchors,
            "progress": round(self.progress(), 4),
        }
        append_jsonl(self.out / LOG, [record])
        self.report(record)


def run(config: TrainConfig, report: Report | None = None) -> tuple[Drafter, dict[str, Any]]:
    """Train as configured; returns the drafter and its held-out metrics."""
    with quiet_denormals():
        trainer = Trainer(config, report)
        return trainer.drafter, trainer.run()
