"""What the adaptive policies know of machine and drafter: found on disk, or measured.

A cost table lies in the cache folder, by what it was measured for; a calibration table beside the
drafter's weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch

from dspark import native
from dspark.artifacts import cache_dir, cpu_model, provenance
from dspark.drafters.checkpoint import load_calibration
from dspark.drafters.drafter import Drafter
from dspark.engine.measuring import measure_quickly, quick_context
from dspark.engine.policies import PolicyTables
from dspark.engine.runner import Runner
from dspark.errors import ConfigError, DSparkError
from dspark.tables.calibration import CalibrationTable
from dspark.tables.cost import CostKey, CostTable
from dspark.targets.names import portable_name
from dspark.targets.target import Target

T = TypeVar("T")

_log = logging.getLogger("dspark.engine")

# Measured in this process, for drafters made in memory and cache folders that cannot be written.
_measured: WeakKeyDictionary[Drafter, dict[CostKey, CostTable]] = WeakKeyDictionary()


def kernel_level(device: torch.device) -> str:
    """Name of the kernels that do the work on a device."""
    if device.type == "cuda":
        return "cuda"
    return native.current()


def cost_key(target: Target, drafter: Drafter) -> CostKey:
    """What a table measured here and now belongs to."""
    cuda = target.device.type == "cuda"
    return CostKey(
        machine=torch.cuda.get_device_name(target.device) if cuda else cpu_model(),
        threads=torch.get_num_threads(),
        target=portable_name(target.name),
        dtype=target.precision,
        drafter=drafter.sha256,
        kernels=kernel_level(target.device),
    )


def default_path(key: CostKey) -> Path:
    """Where a table is kept for everybody to find."""
    parts = (key.target, key.dtype, key.kernels, key.threads, key.drafter[:12])
    name = "-".join(map(str, parts)).replace("/", "_")
    return cache_dir() / "cost" / f"{name}.json"


def calibration_of(drafter: Drafter, rule: str) -> CalibrationTable | None:
    """The calibration table beside a drafter, as it serves under a rule; None without one.

    Entries fitted under the other rule stand in where there are none of this one, with a line in
    the log: they tell how drafts rank, and are off by how much more one rule accepts.

    Args:
        rule: by which drafts above temperature 0 are accepted.

    Raises:
        DataError, IncompatibleDrafterError: see `load_calibration`.
    """
    if drafter.folder is None:
        return None
    found = load_calibration(drafter.folder, drafter.sha256)
    if found is None:
        return None
    table, others = found.under(rule)
    if others:
        _log.info(
            "calibrated for verification %s at temperature %s, which stands in for %s; "
            "`dspark calibrate --verification %s` fits it",
            others[0].verification,
            ", ".join(f"{entry.temperature:g}" for entry in others),
            rule,
            rule,
        )
    return table


def load_tables(policy: str, target: Target, drafter: Drafter, rule: str) -> PolicyTables:
    """The tables of this machine and drafter, for a policy that measures nothing itself.

    Args:
        rule: by which drafts above temperature 0 are accepted.

    Raises:
        ConfigError: nobody measured this machine with these models.
        DataError, IncompatibleDrafterError: a table is damaged or belongs to something else.
    """
    key = cost_key(target, drafter)
    path = default_path(key)
    if not key.drafter or not path.exists():
        raise ConfigError(
            f"Policy {policy} needs to know what a round costs on this machine",
            found=f"no cost table for {key.target} in {key.dtype} on {key.threads} threads",
            fix="Measure it with `dspark profile` and the same options",
        )
    return PolicyTables(CostTable.load(path, key), calibration_of(drafter, rule))


def find_or_measure(runner: Runner, users: int, max_len: int, rule: str) -> PolicyTables | None:
    """The tables of this machine and drafter; what is missing of the cost is measured and kept.

    What cannot be read or written is passed over with a warning of one line.

    Args:
        runner: an engine's, with a drafter, before its first request.
        users: requests at a time, at most the runner's slots.
        max_len: positions of the runner's caches.
        rule: by which drafts above temperature 0 are accepted.

    Returns:
        None where the caches have no room for drafts, or the models cannot be measured.
    """
    target, drafter = runner.target, runner.drafter
    assert drafter is not None
    key = cost_key(target, drafter)
    path = default_path(key) if key.drafter else None
    known = _measured.get(drafter, {}).get(key)
    if known is None and path is not None and path.exists():
        known = _or_none(lambda: CostTable.load(path, key))
    if known is not None and known.context < quick_context(max_len, drafter.config.block_size):
        known = None  # made for shorter texts
    table = known
    if known is None or known.most_requests < users:
        sizes = {"users": users, "max_len": max_len}
        table = _or_none(lambda: measure_quickly(runner, key, **sizes, known=known)) or known
        if table is not None and table is not known:
            _measured.setdefault(drafter, {})[key] = table
            if path is not None:
                _keep(table, path)
    if table is None:
        return None
    return PolicyTables(table, _or_none(lambda: calibration_of(drafter, rule)))


def _keep(table: CostTable, path: Path) -> None:
    record = provenance("quick measurement of the policy auto")
    _or_none(lambda: table.save(path, record))


def _or_none(work: Callable[[], T]) -> T | None:
    """What the work gives, or None and a warning where a file stands in its way."""
    try:
        return work()
    except DSparkError as error:
        _log.warning("policy auto goes on without: %s", error)
        return None
