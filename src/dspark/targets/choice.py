"""Which kernel level and number type a target runs fastest with on this machine, by measurement.

Names of instructions do not tell: a processor may have them and do them slowly, and what a number
costs to read depends on its memory. So the products of some layers with made-up weights are timed
at every level, for one row (a plain step), for a draft to verify and for many rows, once a machine
and target.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import Any

import torch

from dspark import native
from dspark.artifacts import cache_dir, cpu_model, read_artifact, write_artifact
from dspark.errors import DataError, DSparkError
from dspark.native import compiling
from dspark.native.levels import SWITCH
from dspark.targets.family import TargetSpec
from dspark.targets.products import (
    Shape,
    all_shapes,
    by_level,
    count_weights,
    layer_shapes,
    sample,
)
from dspark.targets.weights import INT8, SAME

SCHEMA = "dspark.choice/2"
DTYPES = ("bfloat16", "float32")
# A plain step, one that verifies five draft tokens, and one of many users or a part of a prompt.
ROWS = (1, 6, 32)
# Weights that are timed: beyond a processor's cache, and soon read. The rest follows from them.
SAMPLE = 32_000_000
# Repeats at least and at most, and how many in turn must bring none of the times down by more than
# this share: on a crowded machine the first ones say little.
LEAST, MOST, CALM, SETTLED = 3, 16, 3, 0.03
SMALL = 4_000_000  # weights that stay in a cache: too few to tell anything
# Where PyTorch serves, what lies between the products takes about as long as they do; with our
# kernels it is a sixth (`dspark bench floor`).
BETWEEN = 2.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What a target runs with.

    Attributes:
        level: of kernels (`dspark.native`).
        dtype: name of the number type.
        ms: expected milliseconds of all products of a forward with each of `ROWS`, by level and
            type as "level dtype"; empty where nothing was measured.
        reason: one sentence, for people.
    """

    level: str
    dtype: str
    ms: dict[str, tuple[float, ...]]
    reason: str


def choose(
    spec: TargetSpec, dtype: str = "auto", device: str = "cpu", weights: str = SAME
) -> Choice:
    """The fastest level and type for a target, from the cache folder or measured now.

    Args:
        spec: of the target.
        dtype: a type that is wanted anyway, or "auto".
        device: where the target will run.
        weights: what it keeps its weights in; of eight bits only our levels have products.
    """
    if torch.device(device).type != "cpu":
        given = "bfloat16" if dtype == "auto" else dtype
        return Choice("", given, {}, f"{given} on {device}")
    if dtype not in ("auto", *DTYPES):
        return Choice(_level(), dtype, {}, f"{dtype} as asked; PyTorch serves it")
    if count_weights(all_shapes(spec)) < SMALL:
        level = _level()
        given = _plain_dtype(level) if dtype == "auto" else dtype
        return Choice(level, given, {}, "too small to measure")
    return _best(_kept(spec, weights), spec, dtype)


def _level() -> str:
    """The level that serves where none is measured: the one asked for, else the best."""
    return native.forced() or native.usable()[-1]


def _plain_dtype(level: str) -> str:
    """The type that is most likely the faster one."""
    bf16 = level != native.TORCH or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if bf16 else "float32"


def _best(ms: dict[str, tuple[float, ...]], spec: TargetSpec, dtype: str) -> Choice:
    # Another family's module multiplies by itself: PyTorch's times tell its type, and the level
    # serves its drafter alone.
    forced = native.forced() if spec.is_lean else native.TORCH
    rows: list[tuple[float, str, str]] = []
    for name, times in ms.items():
        level, own = name.split()
        if dtype not in ("auto", own) or forced not in (None, level):
            continue
        # Shares count and not milliseconds: none of the three is worth more than another.
        rows.append(
            (prod(times) * (BETWEEN ** len(ROWS) if level == native.TORCH else 1), level, own)
        )
    _, level, chosen = min(rows)
    asked = [f"{SWITCH}={native.forced()}"] if native.forced() else []
    asked += [f"{dtype} as asked"] if dtype != "auto" else []
    parts = [f"{t:.1f} ms with {n}" for n, t in zip(ROWS, ms[f"{level} {chosen}"], strict=True)]
    reason = f"products of a forward take {', '.join(parts[:-1])} and {parts[-1]} rows"
    level = level if spec.is_lean else _level()
    return Choice(level, chosen, ms, f"{reason}: {'; '.join(asked) or 'the fastest measured here'}")


def _kept(spec: TargetSpec, weights: str) -> dict[str, tuple[float, ...]]:
    """Measured times of this target on this machine, from the cache folder where it has them."""
    key = _key(spec, weights)
    path = _path(key)
    with suppress(DataError, KeyError, TypeError, ValueError, AttributeError):
        content = read_artifact(path, SCHEMA)
        if content["key"] == key and content["ms"]:
            return {str(name): tuple(map(float, times)) for name, times in content["ms"].items()}
    ms = measure(spec, weights == INT8)
    with suppress(DSparkError):  # measured again next time, then
        write_artifact(path, SCHEMA, {"key": key, "ms": ms})
    return ms


def _key(spec: TargetSpec, weights: str) -> dict[str, Any]:
    """What measured times belong to."""
    return {
        "machine": cpu_model(),
        "threads": torch.get_num_threads(),
        "kernels": compiling.digest() if len(native.usable()) > 1 else "",
        "levels": list(native.usable()),
        "torch": torch.__version__,
        "shapes": [list(shape) for shape in (*layer_shapes(spec), _head(spec))],
        "layers": spec.num_layers,
        **({} if weights == SAME else {"weights": weights}),
    }


def _path(key: dict[str, Any]) -> Path:
    (outputs, inputs), threads = key["shapes"][-1], key["threads"]
    parts = [f"{outputs}x{inputs}", key["layers"], threads, len(key["levels"])]
    parts += [key["weights"]] if "weights" in key else []
    return cache_dir() / "choice" / f"{'-'.join(map(str, parts))}.json"


def _head(spec: TargetSpec) -> Shape:
    return spec.vocab_size, spec.hidden_size


def measure(spec: TargetSpec, eight_bits: bool = False) -> dict[str, tuple[float, ...]]:
    """Milliseconds of a forward's products with each of `ROWS`, by level and type.

    Levels take turns in each repeat, so drift of the machine's speed falls on all alike; the
    fastest of the repeats counts, which a neighbour on the machine disturbs least, and there are
    more of them while times still fall.

    Args:
        eight_bits: of weights; PyTorch's level is left out then.
    """
    shapes, scale = sample(spec, SAMPLE)
    ms: dict[str, tuple[float, ...]] = {}
    for dtype in DTYPES:
        ms |= _of_dtype(shapes, dtype, scale, eight_bits)
    return ms


def _of_dtype(
    shapes: Sequence[Shape], dtype: str, scale: float, eight_bits: bool
) -> dict[str, tuple[float, ...]]:
    levels = native.usable()[1:] if eight_bits else native.usable()
    ways = by_level(shapes, getattr(torch, dtype), levels, eight_bits)
    best: dict[tuple[str, int], float] = {}
    calm = 0
    for repeat in range(MOST + 1):
        moved = False
        for rows, (level, products) in product(ROWS, ways.items()):
            seconds = products.seconds(rows, level)
            if not repeat:  # it pays for memory
                continue
            before = best.get((level, rows), inf)
            best[level, rows] = min(seconds, before)
            moved |= seconds < (1 - SETTLED) * before
        calm = 0 if moved else calm + 1
        if repeat >= LEAST and calm >= CALM:
            break
    return {
        f"{level} {dtype}": tuple(1e3 * scale * best[level, rows] for rows in ROWS)
        for level in ways
    }
