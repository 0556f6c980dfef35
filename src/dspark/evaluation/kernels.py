"""Kernel levels against what the machine can do: reading memory, and arithmetic on registers.

A product of few rows cannot be faster than its weights are read, one of many not faster than its
sums are added up. Both are measured between the products themselves, and all levels take turns, so
drift of the machine's speed falls on all alike.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from statistics import median
from time import perf_counter
from typing import Any

import torch

from dspark import native
from dspark.attention.kv_cache import KVCache, Rows
from dspark.attention.ragged import CachedAttention
from dspark.errors import ConfigError
from dspark.evaluation import floor
from dspark.targets.family import TargetSpec
from dspark.targets.products import (
    Shape,
    all_shapes,
    by_level,
    count_weights,
    on_level,
    sample,
)

SCHEMA = "dspark.kernels/1"
DTYPES = ("bfloat16", "float32")
ROWS = (1, 2, 4, 6, 8, 12, 16, 32, 64, 256)
POSITIONS = (128, 1024, 4096)  # that attention sees
ATTENTION_ROWS = (1, 6)  # a plain step, and one that verifies five draft tokens
# Weights that are timed at most: of our layout and PyTorch's in float32 they take 2.4 GiB.
MOST_WEIGHTS = 320_000_000
# The first call of a turn finds another level's threads still waiting for work on the cores. Where
# it took no longer than this, it is not counted and the next one is.
SHORT_S = 0.05
PEAK_S = 0.01  # of a measurement of arithmetic at least
# Hold PyTorch's own instructions down, for a fair comparison with a lower level of ours.
HOLD_DOWN = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
# What is asked of the kernels.
FLOOR, OF_PEAK, SIX_ROWS, OF_TORCH = 1.35, 0.70, 1.6, 0.95

Key = tuple[Any, ...]
Times = dict[Key, float]


def check(levels: Sequence[str], dtypes: Sequence[str]) -> None:
    """Refuses what cannot be measured.

    Raises:
        ConfigError: a level does not run here, or a type is not known.
    """
    what = "There is no such kernel level here"
    for kind, names, known in (
        (what, levels, native.usable()),
        ("Kernels do not know this type", dtypes, DTYPES),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(kind, found=name, fix=f"Use {', '.join(known)}")
        if not names:
            raise ConfigError("There is nothing to measure", fix=f"Name some of {', '.join(known)}")


def measure(
    spec: TargetSpec,
    levels: Sequence[str],
    dtypes: Sequence[str],
    rows: Sequence[int],
    repeats: int,
    on_repeat: Callable[[str, int], None] = lambda dtype, done: None,
) -> dict[str, Any]:
    """Times of each level and type; see schema dspark.kernels/1 in docs/formats.md.

    Args:
        spec: of the target whose shapes are taken.
        levels, dtypes: that :func:`check` lets pass.
        rows: of the products.
        repeats: that count; one more, the first, does not.
        on_repeat: told the type and the repeats that are done, the first included.
    """
    shapes, scale = sample(spec, MOST_WEIGHTS)
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "levels": list(levels),
        "torch_uses": torch.backends.cpu.get_cpu_capability(),
        "environment": {name: os.environ.get(name) for name in HOLD_DOWN},
        "layers": spec.num_layers,
        "shapes": [[*shape, count] for shape, count in Counter(all_shapes(spec)).items()],
        "weights": count_weights(all_shapes(spec)),
        "measured_share": round(1 / scale, 4),
        "peaks": [],
        "products": [],
        "attention": [],
    }
    memory = torch.ones(floor.BUFFER // 4)
    reads = []
    for dtype in dtypes:
        tell = partial(on_repeat, dtype)
        times = _of_dtype(spec, shapes, dtype, levels, rows, repeats, memory, tell)
        reads.append(times.pop(("read",)))
        add_rows(found, times, dtype, reads[-1], scale)
    found["read_gb_s"] = round(median(reads), 2)
    found["summary"] = summary(found)
    return found


def _of_dtype(
    spec: TargetSpec,
    shapes: Sequence[Shape],
    dtype: str,
    levels: Sequence[str],
    rows: Sequence[int],
    repeats: int,
    memory: torch.Tensor,
    on_repeat: Callable[[int], None],
) -> Times:
    """Of one type: median seconds of products and attention and GB/s read, most GFLOP/s."""
    torch_dtype = getattr(torch, dtype)
    products = by_level(shapes, torch_dtype, levels)
    attention = Attention(spec, torch_dtype, max(POSITIONS))
    able = [level for level in levels if attention.serves(level)]
    peaks = {level: Peak(level, dtype) for level in _with_peaks(levels)}
    kept: dict[Key, list[float]] = defaultdict(list)
    for repeat in range(repeats + 1):
        first = repeat % len(levels)  # whose turn is first
        order = [*levels[first:], *levels[:first]]
        for n in rows:
            kept["read",].append(_read(memory))
            for level in order:
                once = partial(products[level].seconds, n, level)
                kept["products", level, n].append(_settled(once))
        for length, n in product(POSITIONS, ATTENTION_ROWS):
            for level in filter(able.__contains__, order):
                once = partial(attention.seconds, n, length, level)
                kept["attention", level, length, n].append(_settled(once))
        for level, peak in peaks.items():
            kept["peak", level].append(peak.gflop_s())
        on_repeat(repeat + 1)
    return {
        key: max(values[1:]) if key[0] == "peak" else median(values[1:])
        for key, values in kept.items()
    }


def _settled(once: Callable[[], float]) -> float:
    seconds = once()
    return seconds if seconds > SHORT_S else once()


def _read(memory: torch.Tensor) -> float:
    """GB/s of reading all of it."""
    start = perf_counter()
    memory.sum()
    return memory.nbytes / (perf_counter() - start) / 1e9


def _with_peaks(levels: Sequence[str]) -> list[str]:
    """Levels whose arithmetic is measured: ours, or the best one where PyTorch stands alone."""
    ours = [level for level in levels if level != native.TORCH]
    return ours or list(native.usable()[1:][-1:])


class Peak:
    """What a level's multiplications and additions on registers come to, on all threads at once."""

    def __init__(self, level: str, dtype: str) -> None:
        with on_level(level):
            self._work = native.kernels().peak
        self._is_bf16 = int(dtype == "bfloat16")
        self._rounds, seconds = 512, 0.0
        while seconds < PEAK_S:
            self._rounds *= 2
            start = perf_counter()
            self._work(self._is_bf16, self._rounds)
            seconds = perf_counter() - start

    def gflop_s(self) -> float:
        """Measured once."""
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            start = perf_counter()
            jobs = [pool.submit(self._work, self._is_bf16, self._rounds) for _ in range(threads)]
            operations = sum(job.result() for job in jobs)
            return float(operations) / (perf_counter() - start) / 1e9


class Attention:
    """Attention of a whole forward of one request, to a cache of made-up numbers.

    Args:
        spec: of the target.
        dtype: of the cache and the rows.
        length: positions of the cache.
    """

    def __init__(self, spec: TargetSpec, dtype: torch.dtype, length: int) -> None:
        self.spec, self.dtype = spec, dtype
        self.cache = KVCache(spec.num_layers, 1, length, spec.num_kv_heads, spec.head_dim, dtype)
        for part in (*self.cache.keys, *self.cache.values):
            part.fill_(0.01)  # pages that were never written are not read from memory

    @torch.inference_mode()
    def serves(self, level: str) -> bool:
        """Whether the level does it itself."""
        with on_level(level):
            able = native.can_attend(self.cache.keys[0], self.spec.head_dim)
            return able or level == native.TORCH

    @torch.inference_mode()
    def seconds(self, rows: int, length: int, level: str) -> float:
        """Time of all layers once, the last row seeing so many positions, its own included."""
        spec = self.spec
        where = Rows.build([(0, length - rows, [0] * rows)])
        q, k, v = (
            torch.full((rows, heads, spec.head_dim), 0.01, dtype=self.dtype)
            for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        )
        with on_level(level):
            start = perf_counter()
            attend = CachedAttention(self.cache, where, spec.layer_windows, spec.attention_scale)
            for layer in range(spec.num_layers):
                attend(layer, q, k, v)
            return perf_counter() - start


# ---------------------------------------------------------------------------------- arithmetic


def add_rows(
    found: dict[str, Any], times: Times, dtype: str, read_gb_s: float, scale: float
) -> None:
    """Adds the rows of one type to a result.

    Args:
        found: with `weights`, and lists `peaks`, `products` and `attention`.
        times: seconds by ("products", level, rows) and ("attention", level, positions, rows),
            GFLOP/s by ("peak", level).
        read_gb_s: of memory, measured with this type.
        scale: all products over those that were timed.
    """
    peaks = {key[1]: value for key, value in times.items() if key[0] == "peak"}
    found["peaks"] += [
        {"level": level, "dtype": dtype, "gflop_s": round(value, 2)}
        for level, value in peaks.items()
    ]
    highest = max(peaks.values(), default=None)
    size = found["weights"] * getattr(torch, dtype).itemsize
    for (kind, level, *rest), value in times.items():
        if kind == "peak":
            continue
        seconds = value * (scale if kind == "products" else 1)
        by_torch = times.get((kind, native.TORCH, *rest))
        row = {"level": level, "dtype": dtype}
        if kind == "attention":
            row |= {"positions": rest[0]}
        row |= {"rows": rest[-1], "ms": round(1e3 * seconds, 5)}
        row |= {"of_torch": None if by_torch is None else round(by_torch / value, 4)}
        if kind == "products":
            row |= _shares(seconds, rest[-1], size, found["weights"], read_gb_s)
            peak = peaks.get(level, highest)
            row |= {"arithmetic": None if peak is None else round(row["gflop_s"] / peak, 4)}
        found[kind].append(row)


def _shares(
    seconds: float, rows: int, size: int, weights: int, read_gb_s: float
) -> dict[str, float]:
    rate, flop = size / seconds / 1e9, 2 * rows * weights
    return {
        "gb_s": round(rate, 3),
        "gflop_s": round(flop / seconds / 1e9, 3),
        "flop_per_byte": flop / size,
        "memory": round(rate / read_gb_s, 4),
    }


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What is asked of each of our levels and types, what it does, and whether that is enough."""
    products = {(row["level"], row["dtype"], row["rows"]): row for row in found["products"]}
    lines: list[dict[str, Any]] = []

    def add(way: tuple[str, str], what: str, value: float, asked: str, met: bool) -> None:
        level, dtype = way
        line = {"level": level, "dtype": dtype, "what": what, "value": round(value, 3)}
        lines.append(line | {"asked": asked, "met": met})

    for way in dict.fromkeys(key[:2] for key in products if key[0] != native.TORCH):
        one, six = products.get((*way, 1)), products.get((*way, 6))
        if one is not None:
            over, share = 1 / one["memory"], one["arithmetic"]
            asked = f"at most {FLOOR}, or {OF_PEAK:.0%} of peak arithmetic ({share:.0%} here)"
            met = over <= FLOOR or share >= OF_PEAK
            add(way, "one row / memory floor", over, asked, met)
        if one is not None and six is not None:
            over = six["ms"] / one["ms"]
            add(way, "6 rows / 1 row", over, f"at most {SIX_ROWS}", over <= SIX_ROWS)
        beside = [row for key, row in products.items() if key[:2] == way and row["of_torch"]]
        if beside:
            worst = min(beside, key=lambda row: row["of_torch"])
            what = f"worst speed against PyTorch's ({worst['rows']} rows)"
            asked, met = f"at least {OF_TORCH}", worst["of_torch"] >= OF_TORCH
            add(way, what, worst["of_torch"], asked, met)
    return lines
