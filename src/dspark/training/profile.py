"""Where the time of a training step goes: by phase, and by tensor operation."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from dspark.config import TrainConfig
from dspark.training.batches import Visit
from dspark.training.guards import quiet_denormals
from dspark.training.metrics import PhaseTimer
from dspark.training.trainer import Trainer

SCHEMA = "dspark.train_profile/1"
OPERATIONS = 15


def peak_memory_gib() -> float:
    """Highest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def profile_steps(config: TrainConfig, steps: int) -> dict[str, Any]:
    """Time ``steps`` steps whose target states are in memory, after one pass that makes them.

    Returns:
        The fields of schema dspark.train_profile/1: anchors_per_s (states in memory),
        anchors_per_s_first_pass (states computed), peak_gib, threads, and ``phases`` and
        ``operations``: rows of name, ms a step and share of the step.
    """
    with quiet_denormals():
        trainer = Trainer(config)
        order = trainer.visits()
        chosen = [next(order) for _ in range(steps)]
        first = _timed(trainer, chosen)
        trainer.timer = PhaseTimer()
        before = trainer.counters.anchors
        seconds = _timed(trainer, chosen)
        anchors = trainer.counters.anchors - before
        phases = [(name, 1e3 * s / steps) for name, s in trainer.timer.seconds.items()]
        with torch.profiler.profile() as profiler:
            for visit in chosen[: max(1, steps // 4)]:
                trainer.step(visit)
        measured = max(1, steps // 4)
        events = [
            (e.key, e.self_cpu_time_total / 1e3 / measured)  # microseconds
            for e in profiler.key_averages()
        ]
    return {
        "anchors_per_s": anchors / seconds,
        "anchors_per_s_first_pass": before / first,
        "peak_gib": peak_memory_gib(),
        "threads": torch.get_num_threads(),
        "phases": _rows(phases, len(phases)),
        "operations": _rows(events, OPERATIONS),
    }


def _timed(trainer: Trainer, chosen: Sequence[Visit]) -> float:
    start = time.perf_counter()
    for visit in chosen:
        trainer.step(visit)
        trainer.counters.step += 1
    return time.perf_counter() - start


def _rows(pairs: list[tuple[str, float]], most: int) -> list[dict[str, Any]]:
    total = sum(ms for _, ms in pairs) or 1.0
    ranked = sorted(pairs, key=lambda pair: -pair[1])[:most]
    return [{"name": name, "ms": round(ms, 2), "share": ms / total} for name, ms in ranked]
