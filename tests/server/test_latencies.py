"""A histogram of many equal values: what Prometheus' own shows, fed one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dspark.server.latencies import Latencies

BOUNDS = (0.001, 0.25, 2.5, 10.0)
Values = st.sampled_from([0.0, *BOUNDS]) | st.floats(0, 20)
Samples = list[tuple[str, dict[str, str]]]


def shown(registry: CollectorRegistry) -> tuple[list[tuple[str, str, str]], Samples, list[float]]:
    """Families; names and labels of their samples; values but the times of creation."""
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    samples = [sample for family in families for sample in family.samples]
    return (
        [(family.name, family.documentation, family.type) for family in families],
        [(sample.name, sample.labels) for sample in samples],
        [sample.value for sample in samples if not sample.name.endswith("_created")],
    )


@given(st.lists(st.tuples(Values, st.integers(1, 9)), max_size=20))
def test_it_shows_what_a_histogram_shows(values: list[tuple[float, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    latencies = Latencies("a:seconds", "Of something", BOUNDS)
    ours.register(latencies)
    histogram = Histogram("a:seconds", "Of something", buckets=BOUNDS, registry=theirs)
    for value, count in values:
        latencies.observe(value, count)
        for _ in range(count):
            histogram.observe(value)
    (families, samples, found), expected = shown(ours), shown(theirs)
    assert (families, samples) == expected[:2]
    assert found == pytest.approx(expected[2])
