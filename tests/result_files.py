"""Made-up result files of every schema a report reads; plausible, and the same every time."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dspark.artifacts import append_jsonl, write_artifact
from dspark.maths.summary import macro, row_intervals

DATASETS = {
    "gsm8k": "math",
    "math500": "math",
    "mbpp": "code",
    "humaneval": "code",
    "mt-bench": "chat",
    "alpaca": "chat",
}
EASE = {"math": 0.0, "code": -0.05, "chat": -0.2}
SKILL = {"mtp": (0.72, 0.0), "eagle3": (0.72, 0.07), "dflash": (0.74, 0.06), "dspark": (0.8, 0.02)}
PROVENANCE: dict[str, Any] = {
    "command": "dspark eval",
    "argv": ["dspark", "eval", "--json", "results/eval.json"],
    "made_at": "2026-01-02T03:04:05+00:00",
    "versions": {"dspark": "0.1.0", "python": "3.11.0", "torch": "2.13.0", "numpy": None},
    "platform": "Linux-x86_64",
    "cpu": {"model": "Example CPU", "count": 2},
    "seeds": {"seed": 0},
    "inputs": {"eval/gsm8k.jsonl": "ab" * 32},
}


def eval_row(
    drafter: str,
    kind: str = "dspark",
    dataset: str = "gsm8k",
    temperature: float = 1.0,
    *,
    policy: str | None = None,
    prompts: int = 12,
    boost: float = 0.0,
    training: dict[str, Any] | None = None,
    **shape: Any,
) -> dict[str, Any]:
    """A row of dspark.eval/1 whose counts come from made-up acceptance by slot.

    Args:
        boost: added to the acceptance of every slot.
        shape: replaces fields of the drafter's shape.
    """
    size = shape.get("block_size", 1 if kind == "mtp" else 7)
    name, _, value = (policy or "").partition(":")
    cut = float(value) if name == "threshold" else 0.0
    start, fall = SKILL[kind]
    chances = [
        min(0.97, start + boost + EASE[DATASETS[dataset]] - 0.03 * temperature - fall * k + cut / 5)
        for k in range(size)
    ]
    draw = random.Random(f"{kind} {dataset} {temperature} {policy} {boost} {shape}")
    drafted = max(1, round(size * (1 - 0.8 * cut)))
    counts = _counts(draw, chances[:drafted] + [0.0] * (size - drafted), drafted, prompts)
    row: dict[str, Any] = {
        "drafter": drafter,
        "kind": kind,
        "shape": {
            "num_layers": 2,
            "block_size": size,
            "markov_rank": 128,
            "markov_head_type": "vanilla" if kind == "dspark" else None,
            "draft_vocab_size": 8192,
            "parameters": 16_123_456,
            **shape,
        },
        "training": training,
        "dataset": dataset,
        "domain": DATASETS[dataset],
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "policy": policy or f"fixed:{size}",
        **counts,
        "tokens_per_s": 80.0,
    }
    return row | row_intervals(row)


def _counts(
    draw: random.Random, chances: Sequence[float], drafted: int, prompts: int
) -> dict[str, Any]:
    per_prompt: dict[str, list[Any]] = {
        "ids": [f"p{i}" for i in range(prompts)],
        "committed": [],
        "rounds": [],
        "accepted": [[0] * len(chances) for _ in range(prompts)],
        "reached": [[0] * len(chances) for _ in range(prompts)],
    }
    for prompt in range(prompts):
        rounds = draw.randint(20, 40)
        mood = draw.gauss(0, 0.05)  # answers differ, so rounds of one prompt resemble each other
        for _ in range(rounds):
            for k, chance in enumerate(chances[:drafted]):
                per_prompt["reached"][prompt][k] += 1
                if draw.random() >= chance + mood:
                    break
                per_prompt["accepted"][prompt][k] += 1
        accepted = sum(per_prompt["accepted"][prompt])
        per_prompt["rounds"].append(rounds)
        per_prompt["committed"].append(accepted + rounds)
    rounds, committed = sum(per_prompt["rounds"]), sum(per_prompt["committed"])
    accepted_K = [sum(column) for column in zip(*per_prompt["accepted"], strict=True)]
    reached_K = [sum(column) for column in zip(*per_prompt["reached"], strict=True)]
    return {
        "prompts": prompts,
        "new_tokens": committed + prompts,
        "rounds": rounds,
        "accepted_length": round(committed / rounds, 4),
        "accept_by_position": [
            round(a / n, 4) if n else None for a, n in zip(accepted_K, reached_K, strict=True)
        ],
        "verified_tokens": drafted * rounds,
        "wasted_tokens": drafted * rounds - (committed - rounds),
        "per_prompt": per_prompt,
    }


def write_eval(path: Path, rows: list[dict[str, Any]], study: str | None = None) -> dict[str, Any]:
    """Writes a dspark.eval/1 file of these rows; returns its fields."""
    data = {
        "target": "tiny-target",
        "dtype": "bfloat16",
        "threads": 2,
        "max_new_tokens": 256,
        "seed": 0,
        "limit": 40,
        "slots": 16,
        "study": study,
        "rows": rows,
        "macro": macro(rows),
    }
    write_artifact(path, "dspark.eval/1", data, PROVENANCE)
    return data


def write_all(folder: Path, prompts: int = 12) -> dict[str, dict[str, Any]]:
    """Writes a file of every kind; returns the fields of each by file name."""
    some = ["gsm8k", "mbpp", "alpaca"]
    spent = {"anchors": 826_645, "elapsed_s": 3960.0, "response_tokens": 1_465_476}
    main = [
        eval_row(kind, kind, dataset, temperature, prompts=prompts, training=spent)
        for temperature in (0.0, 1.0)
        for kind in SKILL
        for dataset in DATASETS
    ]

    def study(name: str, drafters: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        rows = [eval_row(dataset=d, prompts=prompts, **own) for own in drafters for d in some]
        return f"eval_{name}.json", write_eval(folder / f"eval_{name}.json", rows, name)

    depth = [
        {"drafter": f"{kind}-{n}", "kind": kind, "num_layers": n, "boost": 0.03 * math.log2(n)}
        for kind in ("dspark", "dflash")
        for n in (1, 2, 3, 5)
    ]
    blocks = [
        {"drafter": f"{head or kind}-b{n}", "kind": kind, "block_size": n, "markov_head_type": head}
        for kind, head in (("dspark", "vanilla"), ("dspark", "rnn"), ("dflash", None))
        for n in (3, 5, 7, 10)
    ]
    cuts = [
        {"drafter": "dspark", "policy": policy}
        for policy in ("fixed:7", *(f"threshold:{p:g}" for p in (0.1, 0.3, 0.5, 0.7, 0.9)))
    ]
    budget = [
        {
            "drafter": f"{kind}-{n}",
            "kind": kind,
            "boost": 0.04 * math.log2(n / 100),
            "training": {"anchors": 8266 * n, "elapsed_s": 39.6 * n, "response_tokens": 14_654 * n},
        }
        for kind in ("dspark", "dflash")
        for n in (25, 50, 100)
    ]
    heads = [
        {"drafter": f"dspark-{head or 'no-head'}", "markov_head_type": head, "boost": boost}
        for head, boost in ((None, -0.05), ("vanilla", 0.0), ("gated", 0.01), ("rnn", 0.015))
    ]
    vocabularies = [
        {"drafter": f"dspark-{n or 'all'}", "draft_vocab_size": n, "boost": boost}
        for n, boost in ((4096, -0.03), (8192, 0.0), (None, 0.005))
    ]
    files = {
        "eval.json": write_eval(folder / "eval.json", main),
        **dict(
            [
                study("depth", depth),
                study("block_size", blocks),
                study("threshold", cuts),
                study("budget", budget),
                study("head", heads),
                study("vocabulary", vocabularies),
            ]
        ),
        "calibration.json": write_calibration(folder / "calibration.json"),
        "demo.json": write_demo(folder / "demo.json"),
        "head_cost.json": write_head_cost(folder / "head_cost.json"),
        "load.json": write_load(folder / "load.json"),
        "confidence.json": write_confidence(folder / "confidence.json"),
        "load_mtp.json": write_load(folder / "load_mtp.json", "mtp", ("off", "fixed:1")),
        "peers.json": write_peers(folder / "peers.json"),
    }
    write_train_logs(folder)
    return files


def write_calibration(path: Path, block_size: int = 7) -> dict[str, Any]:
    """A dspark.calibration_check/1 file: overconfident before, right after."""
    draw = random.Random(0)
    positions = []
    for k in range(1, block_size + 1):
        share = 0.8**k

        def curve(lean: float, share: float = share) -> dict[str, list[float | None]]:
            centres = [(i + 0.5) / 20 for i in range(20)]
            counts = [round(3000 * math.exp(-8 * (c - share) ** 2)) for c in centres]
            noise = [draw.gauss(0, 0.5 / math.sqrt(n)) for n in counts]
            observed = [
                min(1, max(0, c - lean * c * (1 - c) + e))
                for c, e in zip(centres, noise, strict=True)
            ]
            return {
                "predicted": [None, *centres[1:]],
                "observed": [None, *observed[1:]],
                "count": [0, *counts[1:]],
            }

        positions.append(
            {
                "k": k,
                "rounds": 20_000,
                "base_rate": share,
                "ece_before": 0.03 + 0.007 * k,
                "ece_after": 0.008 + 0.0005 * k,
                "auroc": 0.91 - 0.012 * k,
                "auroc_true": 0.93 - 0.012 * k,
                "brier_before": 0.16,
                "brier_after": 0.15,
                "noise_floor": 0.005,
                "temperature": 1.0 + 0.1 * k,
                "curve_before": curve(0.5),
                "curve_after": curve(0.02),
            }
        )
    data = {
        "target": "tiny-target",
        "rounds": 20_000,
        "fit_rounds": 19_000,
        "ece_before_mean": 0.058,
        "ece_after_mean": 0.0101,
        "auroc_mean": 0.862,
        "auroc_true_mean": 0.882,
        "noise_floor_mean": 0.005,
        "positions": positions,
    }
    write_artifact(path, "dspark.calibration_check/1", data, PROVENANCE)
    return data


def write_confidence(path: Path, block_size: int = 7) -> dict[str, Any]:
    """A dspark.confidence_fit/1 file: the informed head is better at every slot."""
    positions = [
        {
            "k": k,
            "rounds": 3000 - k,
            "base_rate": 0.8**k,
            "auroc_linear": 0.70 + k / 100,
            "auroc": 0.72 + k / 100,
        }
        for k in range(1, block_size + 1)
    ]
    data = {
        "temperature": 1.0,
        "rounds": 3000,
        "fit_rounds": 27000,
        "auroc_linear_mean": 0.74,
        "auroc_mean": 0.76,
        "positions": positions,
    }
    write_artifact(path, "dspark.confidence_fit/1", data, PROVENANCE)
    return data


def write_demo(path: Path) -> dict[str, Any]:
    """A dspark.demo/1 file."""
    lengths = {"math": (2.21, 1.66), "code": (1.98, 1.46), "chat": (1.69, 1.23)}
    data = {
        "target": "tiny-target",
        "drafter": "dspark",
        "dtype": "bfloat16",
        "threads": 2,
        "kernels": "ready",
        "policy": "fixed:3",
        "temperature": 0.0,
        "prompts": 30,
        "plain_tokens_per_s": 75.12,
        "dspark_tokens_per_s": 108.4,
        "transformers_tokens_per_s": 38.2,
        "speedup": 1.4431,
        "accepted_length": 1.9507,
        "identical_texts": 0.2,
        "domains": {
            name: {"prompts": 10, "accepted_length": length, "speedup": speedup}
            for name, (length, speedup) in lengths.items()
        },
    }
    write_artifact(path, "dspark.demo/1", data, PROVENANCE | {"command": "dspark demo"})
    return data


def write_head_cost(path: Path) -> dict[str, Any]:
    """A dspark.head_cost/1 file."""
    costs = {"vanilla": 0.0007, "rnn": 0.0018}
    data = {
        "target": "smollm2-135m",
        "rows": [
            {
                "drafter": "dspark",
                "block_size": size,
                "markov_head_type": head,
                "round_ms": 50.0,
                "head_ms": 50 * cost * size,
                "share": cost * size,
            }
            for head, cost in costs.items()
            for size in (3, 5, 7, 10)
        ],
    }
    write_artifact(path, "dspark.head_cost/1", data, PROVENANCE)
    return data


LOAD_POLICIES = ("off", "fixed:1", "fixed:3", "fixed:7", "causal", "pipelined")


def load_row(
    policy: str, users: int, *, gain: float = 1.0, rate: float = 0.0, turns: int = 12
) -> dict[str, Any]:
    """A row of dspark.load/1: drafts gain most with few users, long ones cost most with many.

    Args:
        gain: factor on the throughput of every policy that drafts.
    """
    fixed = policy.removeprefix("fixed:")
    adapted = 0 if policy == "off" else max(1, 5 - users // 8)
    length = int(fixed) if fixed.isdigit() else adapted
    busy = users or 8
    speed = 70 * busy / (1 + busy / 40)
    if length:
        speed *= gain * (1 + 0.3 * math.sqrt(length)) / (1 + 0.01 * length * busy)
    draw = random.Random(f"{policy} {users} {rate}")
    tokens = [round(speed * draw.uniform(0.95, 1.05)) for _ in range(turns)]
    return {
        "policy": policy,
        "users": users,
        "tokens_per_s": round(sum(tokens) / turns, 4),
        "tokens_per_s_ci": [round(speed * 0.97, 4), round(speed * 1.03, 4)],
        "tokens_per_s_per_user_p50": round(speed / busy, 4),
        "tokens_per_s_per_user_p95": round(1.2 * speed / busy, 4),
        "ttft_p50": 0.05,
        "ttft_p95": 0.2,
        "requests": 40,
        "accepted_length": 1 + 0.4 * math.sqrt(length),
        "mean_verify_len": float(length),
        "wasted_share": 0.4 if length else None,
        "steps": 400,
        "slices": [{"tokens": n, "seconds": 1.0} for n in tokens],
        "rate": rate,
    }


def write_load(
    path: Path,
    kind: str = "dspark",
    policies: Sequence[str] = LOAD_POLICIES,
    rows: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A dspark.load/1 file of a drafter: given rows, or a closed loop and one open level."""
    gain = 1.0 if kind == "mtp" else 1.2
    data = {
        "target": "tiny-target",
        "drafter": kind,
        "kind": kind,
        "dtype": "bfloat16",
        "temperature": 0.0,
        "max_new_tokens": 128,
        "seconds": 12.0,
        "slice_s": 1.0,
        "rows": rows
        or [load_row(policy, n, gain=gain) for n in (1, 4, 16, 64) for policy in policies]
        + [load_row(policy, 0, gain=gain, rate=2.0) for policy in policies],
    }
    write_artifact(path, "dspark.load/1", data, PROVENANCE | {"command": "dspark bench load"})
    return data


def peer_row(peer: str, speed: float, **more: Any) -> dict[str, Any]:
    """A row of dspark.peers/1."""
    return {
        "label": peer,
        "peer": peer,
        "drafter": None,
        "policy": None,
        "tokens_per_s": speed,
        "tokens_per_s_ci": [speed * 0.96, speed * 1.04],
        "ratio_to_plain": round(speed / 75, 4),
        "ratio_ci": [round(speed / 77, 4), round(speed / 73, 4)],
        "seconds": round(3000 / speed, 4),
        "tokens": 3000,
        "prompts": 29,
        "accepted_length": None,
        "equal_texts": 1.0,
        "largest_gap": None,
        "version": "1.2.3",
        "missing": None,
        **more,
    }


def missing_row(peer: str, why: str) -> dict[str, Any]:
    """A row of dspark.peers/1 of a peer that could not run."""
    return dict.fromkeys(peer_row(peer, 1.0)) | {"label": peer, "peer": peer, "missing": why}


def write_peers(path: Path) -> dict[str, Any]:
    """A dspark.peers/1 file with a peer that is missing."""
    data = {
        "target": "tiny-target",
        "dtype": "bfloat16",
        "threads": 2,
        "max_new_tokens": 128,
        "llama": "model.gguf, Q8_0",
        "rows": [
            peer_row("dspark", 75.0, label="dspark off", policy="off"),
            peer_row(
                "dspark",
                108.4,
                label="dspark + dspark fixed:4",
                drafter="dspark",
                policy="fixed:4",
                accepted_length=1.95,
            ),
            peer_row("transformers", 38.2, equal_texts=0.31, largest_gap=0.125),
            missing_row("llama-cpp-python", "llama-cpp-python is not installed"),
            peer_row("llama-server", 91.0, equal_texts=0.2, largest_gap=0.25),
        ],
    }
    write_artifact(path, "dspark.peers/1", data, PROVENANCE | {"command": "dspark bench peers"})
    return data


def write_train_logs(folder: Path) -> None:
    """Training logs of two drafters."""
    for kind, top in (("dspark", 2.1), ("dflash", 1.8)):
        rows = [
            {
                "kind": "held_out" if minutes % 10 == 0 else "train",
                "accepted_length": round(top - (top - 1) * math.exp(-minutes / 25), 4),
                "minutes": float(minutes),
                "step": 10 * minutes,
            }
            for minutes in range(5, 66, 5)
        ]
        append_jsonl(folder / f"train_log_{kind}.jsonl", rows)
