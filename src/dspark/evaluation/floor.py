"""Plain decoding against the memory floor: a step must read all weights once.

The floor of a step is the weights' bytes over the rate at which this machine reads memory,
measured between the steps themselves, so drift of the machine falls on both alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch

from dspark import native
from dspark.core import SamplingParams
from dspark.engine.engine import Engine
from dspark.targets.family import TargetSpec
from dspark.targets.target import Target
from dspark.targets.weights import INT8

SCHEMA = "dspark.floor/1"
BUFFER = 2**30  # bytes read to measure the rate; far beyond any cache
# Kinds of work by words in the names of tensor operations; the first match counts.
KINDS = (
    ("matrix products", ("linear", "mm", "matmul")),
    ("attention", ("attention", "softmax", "bmm")),
    ("cache writes", ("index_copy", "index_put")),
    ("norms", ("norm",)),
    ("choosing the token", ("argmax", "max", "gather")),
)


def weight_bytes(spec: TargetSpec, itemsize: int) -> int:
    """Bytes of the matrices that a step reads: every layer's, and the head's."""
    attention = spec.hidden_size * spec.head_dim * 2 * (spec.num_heads + spec.num_kv_heads)
    layer = attention + 3 * spec.hidden_size * spec.intermediate_size
    return (spec.num_layers * layer + spec.vocab_size * spec.hidden_size) * itemsize


def measure(target: Target, prompt_ids: Sequence[int], steps: int) -> dict[str, Any]:
    """Median time of a plain step for one user, the floor, and where the time goes.

    Args:
        steps: steps to time, each beside a reading of memory.

    Returns:
        weight_mib, read_gb_s, floor_ms, step_ms, ratio (step over floor) and shares: rows of
        name and share of the step's processor time.
    """
    engine = Engine(target, None, "off", slots=1, max_len=len(prompt_ids) + 2 * steps + 32)
    endless = SamplingParams(max_new_tokens=2 * steps + 31, ignore_stop=True)
    engine.submit(prompt_ids, endless)
    for _ in range(4):  # the prompt, and steps that warm up
        engine.step()
    memory = torch.zeros(BUFFER // 4)
    memory.fill_(1.0)  # pages that were never written are not read from memory
    own, read = [], []
    for _ in range(steps):
        start = perf_counter()
        memory.sum()
        middle = perf_counter()
        engine.step()
        own.append(perf_counter() - middle)
        read.append(middle - start)
    size = weight_bytes(target.spec, 1 if target.weights == INT8 else target.dtype.itemsize)
    floor_ms = 1e3 * size / (BUFFER / median(read))
    step_ms = 1e3 * median(own)
    return {
        "weight_mib": round(size / 2**20, 1),
        "read_gb_s": round(BUFFER / median(read) / 1e9, 2),
        "floor_ms": round(floor_ms, 6),
        "step_ms": round(step_ms, 6),
        "ratio": round(step_ms / floor_ms, 3),
        "steps": steps,
        "threads": torch.get_num_threads(),
        "shares": _shares(engine, max(1, steps // 4)),
    }


def _shares(engine: Engine, steps: int) -> list[dict[str, Any]]:
    """Shares of the time of a few steps by kind of work, by the kernels' clock or a profile."""
    native.spent()
    start = perf_counter()
    for _ in range(steps):
        engine.step()
    whole, times = perf_counter() - start, native.spent()
    if not any(times.values()):
        return _profiled_shares(engine, steps)
    times["everything else"] += whole - sum(times.values())
    return _ranked(times)


def _profiled_shares(engine: Engine, steps: int) -> list[dict[str, Any]]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            engine.step()
    times = {name: 0.0 for name, _ in KINDS} | {"everything else": 0.0}
    for event in profiler.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total
    return _ranked(times)


def _ranked(times: dict[str, float]) -> list[dict[str, Any]]:
    total = sum(times.values()) or 1.0
    ranked = sorted(times.items(), key=lambda pair: -pair[1])
    return [{"name": name, "share": round(spent / total, 4)} for name, spent in ranked]


def kind_of(operation: str) -> str:
    """The kind of work that an operation's name stands for."""
    name = operation.removeprefix("aten::").removeprefix("mkldnn::").lower()
    for kind, words in KINDS:
        if any(word in name for word in words):
            return kind
    return "everything else"
