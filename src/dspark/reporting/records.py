"""The result files a report is made from, field by field, as their schemas say."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _nan(value: Any) -> Any:
    return math.nan if value is None else value


def _no_interval(value: Any) -> Any:
    return value or (math.nan, math.nan)  # null, or an empty list


# JSON has no word for nan, so result files say null where a number is not known.
Number = Annotated[float, BeforeValidator(_nan)]
Interval = Annotated[tuple[Number, Number], BeforeValidator(_no_interval)]
UNKNOWN: tuple[float, float] = (math.nan, math.nan)


class Record(BaseModel):
    """Base of all schemas: read-only; keys the report does not show are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Cpu(Record):
    """The processor a file was made on."""

    model: str = ""
    count: int = 0


class Provenance(Record):
    """How a file came about (`artifacts.provenance`)."""

    command: str = ""
    argv: list[str] = []
    made_at: str = ""
    versions: dict[str, str | None] = {}
    platform: str = ""
    cpu: Cpu = Cpu()
    device: str | None = None
    seeds: dict[str, int] = {}
    inputs: dict[str, str] = {}


# ------------------------------------------------------------------------------ dspark.eval/1


class Shape(Record):
    """What a drafter is built like."""

    num_layers: int
    block_size: int
    markov_head_type: str | None = None
    draft_vocab_size: int | None = None
    parameters: int


class Training(Record):
    """What a drafter's training took."""

    anchors: int | None = None
    elapsed_s: float | None = None
    response_tokens: int | None = None


class PerPrompt(Record):
    """Rounds by prompt, and by prompt and slot how often the slot was reached and accepted."""

    rounds: list[int]
    accepted: list[list[int]]
    reached: list[list[int]]

    @model_validator(mode="after")
    def _one_shape(self) -> PerPrompt:
        shapes = [list(map(len, counts)) for counts in (self.accepted, self.reached)]
        if shapes[0] != shapes[1] or len(shapes[0]) != len(self.rounds) or len({*shapes[0]}) != 1:
            raise ValueError("counts by prompt and slot differ in their lengths")
        return self


class EvalRow(Record):
    """One drafter on one dataset at one temperature under one policy."""

    drafter: str
    kind: str
    shape: Shape
    training: Training | None = None
    dataset: str
    domain: str
    temperature: float
    policy: str
    prompts: int
    new_tokens: int
    rounds: int
    accepted_length: Number
    accepted_length_ci: Interval = UNKNOWN
    verified_tokens: int
    wasted_tokens: int
    per_prompt: PerPrompt


class Gain(Record):
    """Relative gain in macro accepted_length over another drafter; 0.1 is 10 %."""

    gain: Number
    ci: Interval = UNKNOWN


class Macro(Record):
    """Means of one drafter's rows at one temperature under one policy, by domain and over them."""

    drafter: str
    temperature: float
    policy: str
    by_domain: dict[str, Number]
    accepted_length: Number
    accepted_length_ci: Interval = UNKNOWN
    gains: dict[str, Gain] = {}


class Eval(Record):
    """Schema dspark.eval/1."""

    target: str
    dtype: str
    threads: int
    max_new_tokens: int
    study: str | None = None
    rows: list[EvalRow]
    macro: list[Macro]


# ------------------------------------------------------------------------------ other schemas


class DemoDomain(Record):
    """A domain's figures in a demo."""

    accepted_length: Number
    speedup: Number


class Demo(Record):
    """Schema dspark.demo/1."""

    target: str
    drafter: str
    dtype: str
    threads: int
    kernels: str | None = None
    policy: str | None = None
    temperature: float
    prompts: int
    plain_tokens_per_s: Number
    dspark_tokens_per_s: Number
    transformers_tokens_per_s: Number = math.nan
    speedup: Number
    accepted_length: Number
    identical_texts: Number
    domains: dict[str, DemoDomain] = {}


class HeadCostRow(Record):
    """Time of one round and of its sequential head, in milliseconds."""

    drafter: str
    block_size: int
    markov_head_type: str | None = None
    round_ms: Number
    head_ms: Number
    confidence_ms: Number = math.nan
    share: Number


class HeadCost(Record):
    """Schema dspark.head_cost/1."""

    target: str
    rows: list[HeadCostRow]


class HeldOut(Record):
    """A held-out measure in a training log; minutes of training."""

    minutes: float
    accepted_length: Number


class RunRow(Record):
    """A training run: its drafter, what it took, its held-out measure."""

    name: str
    kind: str
    num_layers: int
    block_size: int
    markov_head_type: str | None = None
    markov_rank: int = 0
    draft_vocab_size: int | None = None
    parameters: int | None = None
    differs: dict[str, Any] = {}
    device: str | None = None
    minutes: Number
    steps: int
    anchors: int
    accepted_length: Number
    acceptance: list[Number] = []


class Runs(Record):
    """Schema dspark.runs/1."""

    study: str | None = None
    warnings: list[str] = []
    rows: Annotated[list[RunRow], Field(min_length=1)]


# ------------------------------------------------------------------------------ dspark.load/1


class Slice(Record):
    """One turn of a policy."""

    tokens: int
    seconds: float


class LoadRow(Record):
    """One policy at one level of load."""

    policy: str
    drafter: str | None = None  # the file's, in files without it
    kind: str | None = None
    users: int
    rate: float = 0.0
    tokens_per_s: Number
    tokens_per_s_ci: Interval = UNKNOWN
    tokens_per_s_per_user_p50: Number = math.nan
    tokens_per_s_per_user_p95: Number = math.nan
    ttft_p50: Number = math.nan
    ttft_p95: Number = math.nan
    requests: int = 0
    accepted_length: Number = math.nan
    mean_verify_len: Number = math.nan
    wasted_share: Number = math.nan
    slices: list[Slice] = []

    @property
    def level(self) -> str:
        """The load in words."""
        return f"{self.users} users" if self.users else f"{self.rate:g}/s"


class Load(Record):
    """Schema dspark.load/1."""

    target: str
    drafter: str
    kind: str | None = None
    dtype: str
    temperature: float
    rows: list[LoadRow]


# ------------------------------------------------------------------------------ dspark.peers/1


class PeerRow(Record):
    """One way to run the target; without numbers where it is missing."""

    label: str
    peer: str
    drafter: str | None = None
    policy: str | None = None
    tokens_per_s: Number = math.nan
    tokens_per_s_ci: Interval = UNKNOWN
    ratio_to_plain: Number = math.nan
    ratio_ci: Interval = UNKNOWN
    prompts: int | None = None
    tokens: int | None = None
    accepted_length: Number = math.nan
    equal_texts: Number = math.nan
    largest_gap: Number = math.nan
    version: str | None = None
    missing: str | None = None


class Peers(Record):
    """Schema dspark.peers/1."""

    target: str
    dtype: str
    threads: int
    max_new_tokens: int
    llama: str | None = None
    rows: list[PeerRow]
