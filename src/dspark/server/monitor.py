"""Watches the engine's steps: metrics, history, drift, and the refit that drift calls for."""

from __future__ import annotations

import logging
from dataclasses import replace

from dspark.core import StepOutput
from dspark.engine.async_engine import AsyncEngine
from dspark.engine.engine import Engine
from dspark.engine.scheduler import Adaptive
from dspark.errors import ConfigError
from dspark.server.drift import Drift, DriftReport
from dspark.server.history import History
from dspark.server.metrics import Gauges, Metrics
from dspark.server.settings import Settings
from dspark.tables.calibration import CalibrationTable

CHECKS = 10  # looks at drift while the window passes once

_log = logging.getLogger("dspark.server")


class Monitor:
    """What the server knows of its engine.

    `on_step` runs on the engine's thread between steps; everything else on any thread.

    Args:
        engine: the engine itself; only its figures are read, and its policy's table replaced.
        settings: whether and when to refit.
        calibration: the drafter's table, as its policy has it.

    Raises:
        ConfigError: a refit is asked for and the policy has no use for it.
    """

    def __init__(
        self, engine: Engine, settings: Settings, calibration: CalibrationTable | None = None
    ) -> None:
        self._engine, self._settings, self._table = engine, settings, calibration
        self._policy = engine.policy if isinstance(engine.policy, Adaptive) else None
        if settings.recalibrate and self._policy is None:
            raise ConfigError(
                "Recalibration is for the policies that weigh confidences",
                found=engine.policy.name,
                fix="Use --policy auto, causal or pipelined, or leave --recalibrate out",
            )
        drafter = engine.drafter
        sure = drafter is not None and drafter.config.gives_confidence and engine.policy.draft_len
        self._drift = (
            Drift(engine.policy.draft_len, settings.drift_window, engine.verification)
            if sure
            else None
        )
        self._next_check = settings.drift_window
        self._last = replace(engine.stats)
        self._capacity, self._cache_use = 0, 0.0
        self._outer: AsyncEngine | None = None
        self.metrics = Metrics(self._gauges, engine.policy.draft_len)
        self.history = History()

    def watch(self, outer: AsyncEngine) -> None:
        """Name the engine that callers use; before its first step."""
        self._outer = outer

    def on_step(self, outputs: list[StepOutput]) -> None:
        """Take one step's outputs in."""
        stats = self._engine.stats.since(self._last)
        self._last = replace(self._engine.stats)
        queue = self._engine.queue
        self._cache_use = queue.held / queue.cache_len
        records = [output.record for output in outputs if output.record is not None]
        self._capacity = sum([record.verified for record in records])
        self.metrics.step(outputs, stats)
        assert self._outer is not None
        self.history.step(outputs, stats, self._outer.running, self._outer.waiting)
        if self._drift is not None:
            self._take_rounds(self._drift, outputs)
            if self._settings.recalibrate and self._drift.seen >= self._next_check:
                self._recalibrate(self._drift)

    def _take_rounds(self, drift: Drift, outputs: list[StepOutput]) -> None:
        queue = self._engine.queue
        for output in outputs:
            if output.record is not None and output.record.drafted:
                request = output.request
                room = queue.room(request) + output.record.committed
                drift.add(output.record, request.params, room)

    def _recalibrate(self, drift: Drift) -> None:
        """Refit if the window has drifted.

        Every round in it is committed, so the new temperatures know nothing of drafts that are
        still to be judged, and verification stays lossless.
        """
        self._next_check = drift.seen + max(drift.window // CHECKS, 1)
        error = drift.report(self._table).mean_ece
        if not error > self._settings.drift_limit:
            return
        self._next_check = drift.seen + drift.window  # the same rounds would say the same again
        refit = drift.refit(self._table)
        if refit is None:
            _log.warning("confidences drifted (mean ECE %.3f) and a refit does not help", error)
            return
        assert self._policy is not None
        table = self._table or CalibrationTable("", "", self._policy.draft_len, "")
        self._table, _ = table.with_entry(refit.entry).under(self._engine.verification)
        self._policy.use_calibration(self._table)
        self.metrics.recalibrated()
        _log.warning(
            "confidences drifted (mean ECE %.3f): refitted for temperature %g; on rounds not "
            "fitted on, ECE %.3f before and %.3f after",
            error,
            refit.entry.temperature,
            refit.before,
            refit.after,
        )

    def drift(self) -> DriftReport | None:
        """Predictions against outcomes; None without a confidence head."""
        return None if self._drift is None else self._drift.report(self._table)

    def _gauges(self) -> Gauges:
        assert self._outer is not None
        tokens_per_s, verify_len = self.history.recent()
        idle = not self._outer.running
        return Gauges(
            self._outer.healthy,
            self._outer.waiting,
            self._outer.running,
            0.0 if idle else self._cache_use,
            0 if idle else self._capacity,
            tokens_per_s,
            verify_len,
            self.drift(),
        )
