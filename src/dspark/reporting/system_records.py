"""The result files on what the system costs and withstands, as their schemas say."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from dspark.reporting.records import UNKNOWN, Interval, Number, Record
from dspark.tables.cost import CostKey, CostTable, Points, rising


class Share(Record):
    """A kind of work and its share of the time."""

    name: str
    share: Number
    ms: Number = math.nan


# ------------------------------------------------------------------- dspark.cost/1, floor/1


Rising = Annotated[Points, AfterValidator(rising)]


def _draft(points: Points) -> Points:
    return rising(points) if points else ()


class Cost(Record):
    """Schema dspark.cost/1."""

    key: CostKey
    verify: Rising
    draft: Annotated[Points, AfterValidator(_draft)] = ()
    context: int
    block: int = 0
    short: tuple[tuple[int, Rising], ...] = ()
    of_requests: tuple[tuple[int, Rising], ...] = ()

    @property
    def table(self) -> CostTable:
        """The same as the policies read it."""
        return CostTable(**{each.name: getattr(self, each.name) for each in fields(CostTable)})


class Floor(Record):
    """Schema dspark.floor/1."""

    target: str
    dtype: str
    threads: int
    weight_mib: Number
    read_gb_s: Number
    floor_ms: Number
    step_ms: Number
    ratio: Number
    shares: list[Share]


# ---------------------------------------------------------------------------- dspark.weights/1


class KeptWeights(Record):
    """What one kind of weights takes and predicts."""

    weights_mib: Number
    perplexity: Number


class WeightsRow(Record):
    """A way to answer, timed."""

    label: str
    tokens_per_s: Number = math.nan
    tokens_per_s_ci: Interval = UNKNOWN
    accepted_length: Number = math.nan


class Weights(Record):
    """Schema dspark.weights/1."""

    target: str
    dtype: str
    tokens: int
    same: KeptWeights
    int8: KeptWeights
    same_choice: Number
    mean_kl: Number
    rows: list[WeightsRow]


# ---------------------------------------------------------------------------- dspark.kernels/1


class LevelPeak(Record):
    """A kernel level's arithmetic on registers."""

    level: str
    dtype: str
    gflop_s: Number


class LevelProducts(Record):
    """A forward's matrix products at one kernel level; speed against PyTorch's, where it ran."""

    level: str
    dtype: str
    rows: int
    ms: Number
    gflop_s: Number
    flop_per_byte: Number
    memory: Number
    arithmetic: Number = math.nan
    of_torch: Number = math.nan


class Asked(Record):
    """What is asked of a level and type, and what it does."""

    level: str
    dtype: str
    what: str
    value: Number
    asked: str
    met: bool


class Kernels(Record):
    """Schema dspark.kernels/1."""

    target: str
    threads: int
    levels: list[str]
    read_gb_s: Number
    peaks: list[LevelPeak]
    products: Annotated[list[LevelProducts], Field(min_length=1)]
    summary: list[Asked]


# ------------------------------------------------------------------------------ dspark.start/1


class Started(Record):
    """One kind of start: the run that fills caches, and those that count."""

    way: str
    what: str
    first_s: Number
    seconds: Annotated[list[Number], Field(min_length=1)]
    median_s: Number


class Start(Record):
    """Schema dspark.start/1."""

    target: str
    drafter: str
    dtype: str
    weights: str
    times: int
    rows: Annotated[list[Started], Field(min_length=1)]


# ------------------------------------------------------------------------------ dspark.audit/1


class Greedy(Record):
    """Drafted against plain greedy texts."""

    outcome: str
    prompts: int
    identical: Number = math.nan
    largest_gap: Number = math.nan
    beyond_rounding: int


class Distribution(Record):
    """Where sampled tokens fell against where the target would have put them."""

    outcome: str
    tokens: int
    p_value: Number
    distance_seen: Number = math.nan


class Seeds(Record):
    """Seeded texts alone against the same in company."""

    outcome: str
    requests: int
    identical: Number = math.nan


class Audit(Record):
    """Schema dspark.audit/1."""

    target: str
    drafter: str
    policy: str
    dtype: str
    verdict: str
    greedy: Greedy
    distribution: Distribution
    seeds: Seeds


# --------------------------------------------------------------------- dspark.serve_overhead/1


class Way(Record):
    """The engine bare, or behind HTTP."""

    tokens_per_s: Number
    cpu_ms_per_token: Number = math.nan


class ServeOverhead(Record):
    """Schema dspark.serve_overhead/1."""

    target: str
    drafter: str | None = None
    policy: str
    dtype: str
    users: int
    overhead: Number
    overhead_ci: Interval = UNKNOWN
    client_cpu_share: Number = math.nan
    bare: Way
    served: Way


# ------------------------------------------------------------------------------ dspark.soak_*/1


class SoakEngine(Record):
    """Schema dspark.soak_engine/1."""

    requests: int
    finished: dict[str, int]
    preemptions: int
    steps: int
    growth_mib: Number


class SoakServer(Record):
    """Schema dspark.soak_server/1."""

    target: str
    clients: int
    seconds: Number
    requests: int
    equal_texts: int
    errors: list[Any]
    tokens_per_s: Number
    growth_mib: Number


class SoakKills(Record):
    """Schema dspark.soak_kills/1."""

    kills: int
    at_once: int
    slots: int
    free_slots: int
    positions_held: int
    survivors: int
    different: list[Any]
    seconds: Number


class Endpoint(Record):
    """One endpoint under fuzzing: answers by status."""

    endpoint: str
    requests: int
    statuses: dict[str, int]
    slowest_s: Number


class SoakFuzz(Record):
    """Schema dspark.soak_fuzz/1."""

    rows: list[Endpoint]


# ---------------------------------------------------------------------- dspark.train_profile/1


class TrainProfile(Record):
    """Schema dspark.train_profile/1."""

    anchors_per_s: Number
    anchors_per_s_first_pass: Number
    peak_gib: Number
    threads: int
    phases: list[Share]
    operations: list[Share]
