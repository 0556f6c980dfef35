"""Policies by the names that the command line takes."""

from __future__ import annotations

import re
from collections.abc import Callable

from dspark.engine.acceptance import MEMORY, AcceptanceEstimator, ConfidenceMemory
from dspark.engine.cost_model import CostModel
from dspark.engine.draft_gate import DraftGate, FixedLengths
from dspark.engine.drafting import DraftPlanner
from dspark.engine.exploration import JUDGED, ExploringGate
from dspark.engine.policies import Fixed, Off, Policy, PolicyTables, Threshold
from dspark.engine.scheduler import Adaptive
from dspark.errors import ConfigError

CHOICES = (
    "auto, off, fixed:K with K from 1 to the drafter's block size, threshold:P, causal or pipelined"
)


def causal(tables: PolicyTables, block_size: int) -> Adaptive:
    """Algorithm 1 on the cost's convex envelope: stops at the first token that does not pay."""
    acceptance = AcceptanceEstimator(tables.calibration, block_size)
    cost = CostModel(tables.cost, block_size, convex=True)
    fixed = FixedLengths(tables.calibration, cost)
    gate, planner = DraftGate(acceptance, cost, fixed), DraftPlanner(acceptance, cost, fixed)
    return Adaptive("causal", tables, gate, planner)


def pipelined(tables: PolicyTables, block_size: int) -> Adaptive:
    """Capacity from confidences two steps old, then the tokens that now look best (§5.2).

    The capacity knows nothing of the drafts it limits, so it may search the whole staircase.
    """
    acceptance = AcceptanceEstimator(tables.calibration, block_size)
    cost = CostModel(tables.cost, block_size, convex=False)
    fixed, memory = FixedLengths(tables.calibration, cost), ConfidenceMemory(acceptance)
    planner = DraftPlanner(acceptance, cost, fixed, memory)
    return Adaptive("pipelined", tables, DraftGate(acceptance, cost, fixed), planner)


def auto(tables: PolicyTables, block_size: int) -> Adaptive:
    """Plain decoding or `causal`, whichever is faster by what was learned so far."""
    memory = max(MEMORY, JUDGED // block_size)
    acceptance = AcceptanceEstimator(tables.calibration, block_size, memory)
    cost = CostModel(tables.cost, block_size, convex=True)
    fixed = FixedLengths(tables.calibration, cost, must_pay=True)
    gate = ExploringGate(DraftGate(acceptance, cost, fixed, probe_every=0))
    planner = DraftPlanner(acceptance, cost, fixed)
    return Adaptive("auto", tables, gate, planner)


ADAPTIVE: dict[str, Callable[[PolicyTables, int], Adaptive]] = {
    "auto": auto,
    "causal": causal,
    "pipelined": pipelined,
}


def parse_policy(text: str, block_size: int, tables: PolicyTables | None = None) -> Policy:
    """A policy by its name.

    Args:
        text: "auto", "off", "fixed:K", "threshold:P", "causal" or "pipelined"; "auto" without a
            drafter is plain decoding.
        block_size: draft tokens the drafter can make in a round; 0 without a drafter.
        tables: what the adaptive policies know of the machine and the drafter.

    Raises:
        ConfigError: for anything else, naming the choices; or an adaptive policy without tables.
    """
    if text == "off" or (text == "auto" and block_size == 0):
        return Off()
    match = re.fullmatch(r"(?:fixed:(\d+)|threshold:(\d*\.?\d+)|auto|causal|pipelined)", text)
    limit = float(match[2]) if match and match[2] else 0.0
    if match is None or limit > 1:
        raise ConfigError("Unknown policy", found=text, fix=f"Use {CHOICES}")
    if block_size == 0:
        raise ConfigError(f"Policy {text} needs a drafter", fix="Name one, or use the policy off")
    if text in ADAPTIVE:
        if tables is None:
            raise ConfigError(
                f"Policy {text} needs to know what a round costs on this machine",
                fix="Measure it with `dspark profile`",
            )
        return ADAPTIVE[text](tables, block_size)
    if match[2]:
        return Threshold(limit, block_size)
    length = int(match[1])
    if not 1 <= length <= block_size:
        raise ConfigError(
            f"Policy {text} does not fit the drafter",
            found=f"block size {block_size}",
            fix=f"Use {CHOICES}",
        )
    return Fixed(length)
