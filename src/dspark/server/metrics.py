"""Prometheus metrics. Where vLLM has the same figure, its name follows our prefix.

Positions in labels count from 0, as vLLM's do: "0" is the first draft token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dspark.core import StepOutput, StepStats
from dspark.server.drift import DriftReport
from dspark.server.latencies import Latencies

PREFIX = "dspark:"
REASONS = ("stop", "length", "cancelled", "timeout", "error")  # why answers end

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is true at the moment of a scrape.

    Attributes:
        healthy: the engine has not failed.
        waiting, running: requests without and with a slot.
        cache_use: share of the cache's positions that are held.
        capacity: draft tokens verified in the last step.
        tokens_per_s, verify_len: means over the last seconds; the latter is NaN without rounds.
        drift: predictions against outcomes; None without a confidence head.
    """

    healthy: bool
    waiting: int
    running: int
    cache_use: float
    capacity: int
    tokens_per_s: float
    verify_len: float
    drift: DriftReport | None


class Metrics:
    """All metrics of one server, in a registry of its own. Safe to feed from any thread.

    Args:
        gauges: is asked at every scrape.
        draft_len: draft tokens a round, at most.
    """

    def __init__(self, gauges: Callable[[], Gauges], draft_len: int) -> None:
        self.registry = CollectorRegistry()
        count, time = self._counter, self._histogram
        self._drafts = count("spec_decode_num_drafts", "Rounds with a draft")
        self._drafted = count("spec_decode_num_draft_tokens", "Draft tokens made")
        self._verified = count("spec_decode_num_verified_tokens", "Draft tokens verified")
        self._accepted = count("spec_decode_num_accepted_tokens", "Draft tokens accepted")
        self._accepted_at = count(
            "spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted, by position from 0",
            "position",
        )
        self._prompt = count("prompt_tokens", "Tokens of prompts")
        self._generated = count("generation_tokens", "Tokens of answers")
        self._answers = count("answers", "Answers that ended, by reason", "finish_reason")
        self._refits = count("recalibrations", "Refits of the confidences' temperatures")
        self._first = time("time_to_first_token_seconds", "Until an answer's first token", _SLOW)
        self._between = Latencies(
            PREFIX + "inter_token_latency_seconds",
            "Between tokens; those of one step share it",
            _FAST,
        )
        self.registry.register(self._between)
        self._whole = time("e2e_request_latency_seconds", "Whole requests, by answer", _SLOW)
        self._step = time("step_seconds", "Steps of the engine", _FAST)
        self.registry.register(_Live(gauges))
        # A counter that begins with its first count has no growth there for `rate` to see.
        for position in range(draft_len):
            self._accepted_at.labels(position)
        for reason in REASONS:
            self._answers.labels(reason)

    def step(self, outputs: Sequence[StepOutput], stats: StepStats) -> None:
        """Count one engine step.

        Args:
            stats: of this step alone.
        """
        prompt = rounds = drafted = verified = accepted = 0
        accepted_at: list[int] = []  # rounds by tokens accepted, from 1
        for output in outputs:  # one loop: this stands between two steps
            record = output.record
            if record is None:
                prompt += len(output.request.prompt_ids)
            elif record.drafted:
                rounds += 1
                drafted += record.drafted
                verified += record.verified
                accepted += record.accepted
                if record.accepted:
                    accepted_at += [0] * (record.accepted - len(accepted_at))
                    accepted_at[record.accepted - 1] += 1
        self._step.observe(stats.seconds)
        self._generated.inc(sum([len(output.token_ids) for output in outputs]))
        for counter, count in (
            (self._prompt, prompt),
            (self._drafts, rounds),
            (self._drafted, drafted),
            (self._verified, verified),
            (self._accepted, accepted),
        ):
            counter.inc(count)
        longer = 0
        for position in reversed(range(len(accepted_at))):
            longer += accepted_at[position]
            self._accepted_at.labels(position).inc(longer)

    def tokens_came(self, count: int, seconds: float, first: bool) -> None:
        """Note that an answer got tokens so many seconds after its start or its last ones."""
        if first:
            self._first.observe(seconds)
            return
        self._between.observe(seconds / count, count)

    def answer_ended(self, reason: str, seconds: float) -> None:
        """Note how an answer ended, one of `REASONS`."""
        self._answers.labels(reason).inc()
        self._whole.observe(seconds)

    def recalibrated(self) -> None:
        """Note a refit."""
        self._refits.inc()

    def text(self) -> bytes:
        """What a scrape gets."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, what, buckets=buckets, registry=self.registry)


class _Live(Collector):
    """Gauges, read at the scrape."""

    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        self._gauges = gauges

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # so that nothing is asked before the engine is there

    def collect(self) -> Iterable[GaugeMetricFamily]:
        now = self._gauges()
        for name, what, value in (
            ("engine_healthy", "1 while the engine has not failed", float(now.healthy)),
            ("num_requests_waiting", "Requests without a slot", now.waiting),
            ("num_requests_running", "Requests with a slot", now.running),
            ("kv_cache_usage_perc", "Share of cache positions held, 0 to 1", now.cache_use),
            ("scheduler_capacity_tokens", "Draft tokens verified in the last step", now.capacity),
            ("tokens_per_second", "Tokens of answers, over the last 10 s", now.tokens_per_s),
            ("mean_verify_len", "Draft tokens verified a round, last 10 s", now.verify_len),
        ):
            if not math.isnan(value):
                yield GaugeMetricFamily(PREFIX + name, what, value)
        if now.drift is not None:
            yield from _calibration(now.drift)


def _calibration(drift: DriftReport) -> Iterable[GaugeMetricFamily]:
    for name, what, values in (
        ("calibration_predicted", "Mean calibrated survival in the window", drift.predicted),
        ("calibration_observed", "Share of prefixes accepted in the window", drift.observed),
        ("calibration_ece", "Expected calibration error in the window", drift.ece),
        ("calibration_rounds", "Rounds that tell, in the window", drift.rounds),
    ):
        family = GaugeMetricFamily(PREFIX + name, f"{what}, by position", labels=["position"])
        for position, value in enumerate(values):
            if not math.isnan(value):
                family.add_metric([str(position)], value)
        yield family
