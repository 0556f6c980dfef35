"""What a report has to show, and for what it lacks the command that measures it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from dspark.reporting import series
from dspark.reporting.figures import Curve
from dspark.reporting.load import Results
from dspark.reporting.page import Missing
from dspark.reporting.series import Line
from dspark.reporting.tables import number

LENGTH = "accepted length, tokens a round"
DATA = "--data eval/gsm8k.jsonl --data eval/mbpp.jsonl --data eval/alpaca.jsonl --temperature 1"
STUDIES = ("depth", "block_size", "budget", "head", "vocabulary")
COMMANDS = {
    "main": f"dspark eval {DATA} --drafter dspark --drafter dflash --json results/eval.json",
    "threshold": f"dspark eval {DATA} --threshold 0.3 --threshold 0.6 --threshold 0.9 "
    "--study threshold --json results/eval_threshold.json",
    "calibration": "dspark calibrate --data PROMPTS.jsonl --json results/calibration.json",
    "head_cost": "dspark bench head --json results/head_cost.json",
    "demo": "dspark demo --compare transformers --json results/demo.json",
    "load": "dspark bench load --users 1,2,4,8,16,32,64 --policies off,fixed:1,fixed:3,causal "
    "--json results/load.json",
    "load_mtp": "dspark bench load --users 1,2,4,8,16,32,64 --policies off,causal "
    "--against mtp=fixed:1 --json results/load.json",
    "peers": "dspark bench peers --gguf MODEL.gguf --json results/peers.json",
    "cost": "dspark profile --json results/cost.json",
    "floor": "dspark bench floor --json results/floor.json",
    "kernels": "dspark bench kernels --json results/kernels.json",
    "weights": "dspark bench weights --data HELDOUT.jsonl --drafter dspark "
    "--json results/weights.json",
    "serve_overhead": "dspark bench serve --json results/serve_overhead.json",
    "start": "dspark bench start --json results/start.json",
    "audit": "dspark audit --policy fixed:5 --json results/audit.json",
    "soak": "make soak",
    "train_log": "dspark train --config RECIPE.toml",
    "runs": "dspark compare runs/A runs/B --json results/runs.json",
    "train_profile": "dspark train --config RECIPE.toml --profile --json "
    "> results/train_profile.json",
}


def study_command(study: str) -> str:
    """The command that measures drafters which differ in one thing."""
    return (
        f"dspark eval {DATA} --drafter A=FOLDER --drafter B=FOLDER --study {shlex.quote(study)} "
        f"--json {shlex.quote(f'results/eval_{study}.json')}"
    )


COMMANDS |= {study: study_command(study) for study in STUDIES}


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was read, and the temperature figures are to show (unset: see `at_temperature`)."""

    results: Results
    lines: list[Line]
    temperature: float | None = None

    def pick(self, some: Sequence[Line]) -> list[Line]:
        """Those of these lines that a figure shows."""
        return series.at_temperature(some, self.temperature)

    def missing(self, what: str, key: str, some: Sequence[Line] = ()) -> Missing:
        """Why nothing is shown; `key` is one of `COMMANDS`, or a study."""
        there = ", ".join(f"{t:g}" for t in series.temperatures(some))
        if there:
            what = f"{what} at temperature {self.temperature:g} (measured at {there})"
        return Missing(f"{what}.", COMMANDS.get(key) or study_command(key))


def ends(curves: Sequence[Curve], form: str = ".2f") -> str:
    """First and last known height of each curve, in words."""
    words = []
    for curve in curves:
        known = [y for _, y, _ in curve.points if not math.isnan(y)]
        if len(known) > 1:
            words.append(f"{curve.label} {number(known[0], form)} → {number(known[-1], form)}")
        elif known:
            words.append(f"{curve.label} {number(known[0], form)}")
    return "; ".join(words)
