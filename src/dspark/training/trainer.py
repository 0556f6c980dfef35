"""The course of a run (DSpark §3.3): steps until the budget is used, saved and measured on the way.

A run that was killed continues the same curve. With several processes the main one logs, saves and
measures for all.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dspark.artifacts import check_writable
from dspark.config import TrainConfig
from dspark.data.vocabulary import token_frequencies
from dspark.drafters.checkpoint import save_drafter
from dspark.drafters.drafter import Drafter
from dspark.errors import CheckpointError, ConfigError
from dspark.signals import hold_interrupt, note_interrupts
from dspark.training.guards import quiet_denormals
from dspark.training.learner import Counters, Learner, Report
from dspark.training.log import LOG, append_log, trim_log
from dspark.training.metrics import Meter
from dspark.training.recipe import check_same, drafter_record, fixed_part
from dspark.training.snapshot import load_snapshot, read_counters, reading, save_snapshot
from dspark.training.warm_start import to_save

__all__ = ["LOG", "Trainer", "run"]


class Trainer(Learner):
    """One run; ``run()`` goes until the budget of minutes or steps is used."""

    def resume(self) -> bool:
        """Take up the state below ``out`` if there is one.

        Raises:
            ConfigError: when it belongs to another recipe, or not all processes see it.
            CheckpointError: when it is damaged.
        """
        with self.parallel.main_first():  # it may have to put a half-swapped state back
            saved = read_counters(self.out)
        steps = self.parallel.gather(None if saved is None else saved.get("step"))
        if len(set(map(str, steps))) > 1:
            raise ConfigError(
                f"The processes do not see the same state below {self.out}",
                found=f"steps {steps}",
                fix="Put `out` on a disk that all machines share",
            )
        if saved is not None:
            self._take_up(saved)
        if self.parallel.is_main:
            trim_log(self.out, self.counters.step)
        return saved is not None

    def _take_up(self, saved: dict[str, Any]) -> None:
        with reading(self.out):
            recipe, meter = saved.pop("recipe"), saved.pop("meter", None)
            saved.pop("start", None)  # known since before the models were loaded
            counters = Counters(**saved)
            check_same(recipe, self._recipe(), self.out)
            if meter is not None and self.parallel.is_main:  # it holds the sums of all
                self.meter = Meter.restored(meter)
        load_snapshot(self.out, self.drafter, self.optimisers)
        self.drafter.bind(self.target)  # the restored draft vocabulary picks the head's rows
        if self.drafter.d2t is not None:
            seen = token_frequencies(self.train, self.target.spec.vocab_size)
            self.coverage = float(seen[self.drafter.d2t.cpu().numpy()].sum() / seen.sum())
        self.counters = counters

    def _recipe(self) -> dict[str, Any]:
        return fixed_part(self.config, self.drafter.config.from_texts)

    def _merged_meter(self) -> Meter:
        """What all processes measured since the last log line."""
        if self.parallel.world == 1:
            return self.meter
        return Meter.merged(self.parallel.gather(self.meter.state()))

    def save(self) -> None:
        """Write the resumable state and the drafter as it stands; all processes must call."""
        meter = self._merged_meter()
        if not self.parallel.is_main:
            return
        counters = asdict(self.counters) | {"recipe": self._recipe(), "meter": meter.state()}
        counters |= {"start": to_save(self.start)}
        save_snapshot(self.out, self.drafter, self.optimisers, counters)
        self.save_drafter(self.out / "drafter")

    def save_drafter(self, folder: Path, held_out: dict[str, Any] | None = None) -> None:
        """Write the drafter in DeepSpec's layout with its provenance."""
        training = asdict(self.counters) | {
            "answers": len(self.train),
            "dropped": dict(self.dropped),
            "response_tokens": sum(int(r.completion_mask.sum()) for r in self.train),
            "draft_vocabulary_coverage": round(self.coverage, 5),
            "held_out": held_out,
        }
        began = None if self.start is None else self.start.record
        files = {"provenance.json": drafter_record(self.config, training, began)}
        save_drafter(self.drafter, folder, extra_files=files)

    def _keep_aside(self) -> None:
        """Keep the drafter as it stands at the configured shares of the budget."""
        for part in self.config.run.keep_at:
            folder = self.out / f"drafter-{round(100 * part)}"
            if self.parallel.is_main and self.progress() >= part and not folder.exists():
                self.save_drafter(folder)

    def run(self) -> dict[str, Any]:
        """Train to the end of the budget; returns the last held-out metrics (main process).

        A KeyboardInterrupt saves the state before it goes on its way.

        Raises:
            CheckpointError: when ``out`` cannot be written; the state before stays.
        """
        if self.parallel.is_main:
            check_writable(self.out / LOG, CheckpointError)
        resumed = self.resume()
        self._tell_of_data(resumed)
        together: AbstractContextManager[list[bool]] = note_interrupts()
        if self.parallel.world == 1:
            together = nullcontext([])  # alone, a step's end is enough to wait for
        with together as came:
            try:
                self._loop(came)
            except KeyboardInterrupt:
                self.save()
                raise
            self.save()
        measured = self.measure_held_out() if self.parallel.is_main else {}
        if measured:
            self._log({"kind": "held_out", **measured})
            self.save_drafter(self.out / "drafter", measured)
        self.parallel.wait()
        return measured

    def _loop(self, interrupts: list[bool]) -> None:
        run = self.config.run
        saved = measured = self.counters.elapsed_s
        last = time.perf_counter()
        for visit in self.visits():
            if self.progress() >= 1:
                return
            with hold_interrupt():
                self.step(visit)
                self.counters.step += 1
                now = time.perf_counter()
                stop = self._agree(now - last, interrupts)
                if self.counters.step % run.log_every == 0:
                    self._log_steps()
            if stop:
                raise KeyboardInterrupt
            self._keep_aside()
            elapsed = self.counters.elapsed_s
            if elapsed - measured > 60 * run.eval_every_minutes and self.held_out:
                if self.parallel.is_main:
                    self._log({"kind": "held_out", **self.measure_held_out()})
                measured = elapsed
            if elapsed - saved > 60 * run.checkpoint_every_minutes:
                self.save()
                saved = elapsed
            last = time.perf_counter()

    def _agree(self, seconds: float, interrupts: list[bool]) -> bool:
        """Count a step's time by the main process's clock, so that all end and save together.

        Returns:
            whether Ctrl-C came to any process.
        """
        mine = seconds if self.parallel.is_main else 0.0
        spent, came = self.parallel.total(mine, len(interrupts))
        self.counters.elapsed_s += spent
        self.meter.spend(spent)
        return came > 0

    def _log_steps(self) -> None:
        meter = self._merged_meter()
        if meter.steps:
            self._log({"kind": "train", **meter.summary()})
            self.meter = Meter()

    def _tell_of_data(self, resumed: bool) -> None:
        """Say which answers are not learned from; the log of a run says it once."""
        if not self.dropped or not self.parallel.is_main:
            return
        counts = {"answers": len(self.train), "held_out": len(self.held_out)}
        record = {"kind": "data", **counts, "dropped": dict(self.dropped)}
        if resumed:
            self.report(record)
        else:
            self._log(record)

    def _log(self, record: dict[str, Any]) -> None:
        if not self.parallel.is_main:
            return
        minutes = self.counters.elapsed_s / 60
        record |= {
            "step": self.counters.step,
            "minutes": round(minutes, 2),
            "total_anchors": self.counters.anchors,
            "progress": round(self.progress(), 4),
        }
        append_log(self.out, record)
        self.report(record)


def run(config: TrainConfig, report: Report | None = None) -> tuple[Drafter, dict[str, Any]]:
    """Train as configured; returns the drafter and its held-out metrics."""
    with quiet_denormals():
        trainer = Trainer(config, report)
        return trainer.drafter, trainer.run()
