"""A Prometheus histogram that takes many equal values at once."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Latencies(Collector):
    """What `prometheus_client.Histogram` shows, fed with a value and how often it was met.

    The tokens of a step share one latency, and they come by the thousand: the library's own takes
    two locks and a walk over the buckets for each. Safe to feed from any thread.

    Args:
        name, what: of the metric.
        bounds: upper ends of the buckets but the last, which has none; ascending.
    """

    def __init__(self, name: str, what: str, bounds: Sequence[float]) -> None:
        self._name, self._what = name, what
        self._bounds, self._words = bounds, [floatToGoString(b) for b in (*bounds, math.inf)]
        self._counts, self._sum = [0] * len(self._words), 0.0
        self._created, self._lock = time.time(), threading.Lock()

    def observe(self, value: float, count: int = 1) -> None:
        """Take a value that was met so many times."""
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[bucket] += count
            self._sum += value * count

    def collect(self) -> Iterable[HistogramMetricFamily]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        family = HistogramMetricFamily(self._name, self._what)
        upto = map(float, accumulate(counts))
        family.add_metric([], list(zip(self._words, upto, strict=True)), total)
        family.add_sample(f"{self._name}_created", {}, self._created)
        yield family
