"""Made-up result files on what the system costs and withstands, one of every schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dspark.artifacts import write_artifact
from result_files import PROVENANCE

GPU = PROVENANCE | {"device": "Example GPU 80GB"}
SYSTEM: dict[str, tuple[str, dict[str, Any]]] = {
    "cost.json": (
        "dspark.cost/1",
        {
            "key": {
                "machine": "Example CPU",
                "threads": 2,
                "target": "tiny-target",
                "dtype": "bfloat16",
                "drafter": "ab" * 32,
            },
            "verify": [[1, 0.0148], [8, 0.02], [64, 0.0629], [512, 0.3604]],
            "draft": [[1, 0.0034], [8, 0.0071], [64, 0.0396]],
            "context": 256,
            "block": 7,
            "short": [[1, [[1, 0.0021], [64, 0.02]]], [3, [[1, 0.0026], [64, 0.031]]]],
            "of_requests": [[1, [[1, 0.0148], [8, 0.019]]], [8, [[8, 0.02], [64, 0.0629]]]],
        },
    ),
    "floor.json": (
        "dspark.floor/1",
        {
            "target": "tiny-target",
            "dtype": "bfloat16",
            "threads": 2,
            "weight_mib": 256.5,
            "read_gb_s": 57.88,
            "floor_ms": 4.647,
            "step_ms": 13.837,
            "ratio": 2.977,
            "steps": 60,
            "shares": [{"name": "matrix products", "share": 0.72}, {"name": "rest", "share": 0.28}],
        },
    ),
    "weights.json": (
        "dspark.weights/1",
        {
            "target": "tiny-target",
            "dtype": "bfloat16",
            "threads": 2,
            "answers": 40,
            "tokens": 9000,
            "same": {"kernels": "avx2", "weights_mib": 256.5, "perplexity": 3.25},
            "int8": {"kernels": "avx2", "weights_mib": 129.5, "perplexity": 3.27},
            "same_choice": 0.9712,
            "mean_kl": 0.0021,
            "max_new_tokens": 128,
            "rows": [
                {"label": "same off", "tokens_per_s": 60.0, "tokens_per_s_ci": [58.0, 61.0]},
                {
                    "label": "int8 + dspark auto",
                    "tokens_per_s": 130.0,
                    "tokens_per_s_ci": [120.0, 140.0],
                    "accepted_length": 2.5,
                },
            ],
        },
    ),
    "start.json": (
        "dspark.start/1",
        {
            "target": "tiny-target",
            "drafter": "dspark",
            "dtype": "auto",
            "weights": "same",
            "threads": None,
            "times": 3,
            "rows": [
                {
                    "way": "generate",
                    "what": "first token",
                    "first_s": 9.5,
                    "seconds": [1.5, 1.2, 1.75],
                    "median_s": 1.5,
                },
                {
                    "way": "serve",
                    "what": "ready for requests",
                    "first_s": 12.0,
                    "seconds": [2.5, 2.25, 2.75],
                    "median_s": 2.5,
                },
            ],
        },
    ),
    "kernels.json": (
        "dspark.kernels/1",
        {
            "target": "tiny-target",
            "threads": 2,
            "repeats": 7,
            "levels": ["torch", "avx2", "avx512_bf16"],
            "read_gb_s": 20.0,
            "peaks": [
                {"level": "avx2", "dtype": "bfloat16", "gflop_s": 100.0},
                {"level": "avx512_bf16", "dtype": "bfloat16", "gflop_s": 500.0},
            ],
            "products": [
                {
                    "level": level,
                    "dtype": "bfloat16",
                    "rows": rows,
                    "ms": 10.0 * rows**0.5,
                    "gb_s": 15.0,
                    "gflop_s": 15.0 * rows**0.5,
                    "flop_per_byte": 1.0 * rows,
                    "memory": 0.75,
                    "arithmetic": None,
                    "of_torch": 1.0,
                }
                for level in ("torch", "avx2", "avx512_bf16")
                for rows in (1, 6, 64)
            ],
            "attention": [],
            "summary": [
                {
                    "level": "avx512_bf16",
                    "dtype": "bfloat16",
                    "what": "6 rows / 1 row",
                    "value": 2.449,
                    "asked": "at most 1.6",
                    "met": False,
                }
            ],
        },
    ),
    "audit.json": (
        "dspark.audit/1",
        {
            "target": "tiny-target",
            "drafter": "dspark",
            "policy": "fixed:5",
            "dtype": "bfloat16",
            "verdict": "lossless",
            "greedy": {
                "check": "greedy",
                "outcome": "passed",
                "prompts": 12,
                "identical": 0.5,
                "largest_gap": 0.25,
                "beyond_rounding": 0,
                "accepted_length": 2.2758,
            },
            "distribution": {
                "check": "distribution",
                "outcome": "passed",
                "tokens": 5626,
                "hits": 1400,
                "due": 1405.46,
                "p_value": 0.5478,
                "distance_seen": None,
                "z_by_slot": [0.5],
                "verify_lengths": {"5": 2875},
                "accepted_length": 1.9649,
            },
            "seeds": {
                "check": "seeds",
                "outcome": "passed",
                "requests": 12,
                "identical": 0.0833,
            },
        },
    ),
    "serve_overhead.json": (
        "dspark.serve_overhead/1",
        {
            "target": "tiny-target",
            "drafter": "dspark",
            "kind": "dspark",
            "policy": "fixed:4",
            "dtype": "bfloat16",
            "threads": 2,
            "users": 32,
            "overhead": 0.0537,
            "overhead_ci": [0.015, 0.094],
            "client_cpu_share": 0.0048,
            "bare": {"tokens_per_s": 547.17, "cpu_ms_per_token": 3.2219},
            "served": {"tokens_per_s": 517.79, "cpu_ms_per_token": 3.3709},
        },
    ),
    "soak_engine.json": (
        "dspark.soak_engine/1",
        {
            "requests": 10_000,
            "finished": {"length": 7495, "cancelled": 2039, "stop": 466},
            "preemptions": 249,
            "steps": 10_373,
            "rss_mib": [[500, 600.0]],
            "growth_mib": 0.2,
        },
    ),
    "soak_server.json": (
        "dspark.soak_server/1",
        {
            "target": "tiny-target",
            "clients": 64,
            "seconds": 608.1,
            "requests": 2218,
            "equal_texts": 2217,
            "different": [["a", "b"]],
            "errors": [],
            "tokens": 81_543,
            "tokens_per_s": 134.1,
            "growth_mib": 20.2,
        },
    ),
    "soak_kills.json": (
        "dspark.soak_kills/1",
        {
            "kills": 1000,
            "where": {"queue": 287, "prompt": 182, "answer": 531},
            "at_once": 16,
            "slots": 4,
            "free_slots": 4,
            "positions_held": 0,
            "survivors": 109,
            "different": [],
            "preemptions": 26,
            "seconds": 40.4,
        },
    ),
    "soak_fuzz.json": (
        "dspark.soak_fuzz/1",
        {
            "examples": 1000,
            "rows": [
                {
                    "endpoint": "POST /v1/completions",
                    "requests": 2000,
                    "statuses": {"200": 209, "400": 1791},
                    "slowest_s": 0.962,
                }
            ],
        },
    ),
    "runs.json": (
        "dspark.runs/1",
        {
            "study": "remedies",
            "config": {"optim.lr": 0.002},
            "warnings": ["b was measured on other held-out answers than a"],
            "rows": [
                {
                    "name": name,
                    "kind": kind,
                    "num_layers": 2,
                    "block_size": 3,
                    "markov_head_type": head,
                    "markov_rank": 128 if head else 0,
                    "draft_vocab_size": 16384,
                    "parameters": None,
                    "differs": differs,
                    "device": "Example GPU 80GB",
                    "minutes": 2.18,
                    "steps": 400,
                    "anchors": 1_172_827,
                    "answers": 25_198,
                    "accepted_length": length,
                    "acceptance": [0.4692, 0.384, None],
                    "curve": [[2.18, 1_172_827, length]],
                }
                for name, kind, head, differs, length in (
                    ("a", "dspark", "vanilla", {}, 1.8494),
                    ("dflash-b", "dflash", None, {"optim.lr": 0.004}, 1.5905),
                )
            ],
        },
    ),
    "train_profile.json": (
        "dspark.train_profile/1",
        {
            "anchors_per_s": 561.08,
            "anchors_per_s_first_pass": 242.23,
            "peak_gib": 3.2144,
            "threads": 2,
            "phases": [{"name": "forward and loss", "ms": 385.97, "share": 0.4377}],
            "operations": [{"name": f"aten::{n}", "ms": 9.0, "share": 0.1} for n in range(15)],
        },
    ),
}


def write_system(folder: Path, provenance: dict[str, Any] = GPU) -> None:
    """Writes all of them."""
    for name, (schema, data) in SYSTEM.items():
        write_artifact(folder / name, schema, data, provenance)
