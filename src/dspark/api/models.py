"""From names to models that are ready to run: device, number type and drafter, resolved once."""

from __future__ import annotations

from pathlib import Path

import torch

from dspark.api.names import AUTO, NONE, find_drafter
from dspark.drafters import checkpoint
from dspark.drafters.drafter import Drafter
from dspark.errors import ConfigError
from dspark.fetching.known import DEFAULT_TARGET, KNOWN_TARGETS
from dspark.targets import target as targets
from dspark.targets.names import resolve_target
from dspark.targets.target import Target
from dspark.targets.weights import SAME


def best_device() -> str:
    """Where models run: on a GPU if torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_target(
    name: str | Path = DEFAULT_TARGET,
    dtype: str = AUTO,
    *,
    weights: str = SAME,
    device: str = AUTO,
    threads: int | None = None,
) -> Target:
    """Load a target by known name, local folder or Hugging Face id.

    Args:
        dtype: of weights and arithmetic: bfloat16, float32 or float16. "auto" takes the faster one
            of the first two, measured once on this machine.
        weights: "int8" keeps the weights of the products in eight bits, on a processor; "same"
            keeps them as `dtype` says.
        device: "auto" takes a GPU if torch sees one.
        threads: processor threads of this process; None leaves them as they are.

    Raises:
        CheckpointError: nothing loadable is found, or files are damaged.
        ConfigError: weights of eight bits are not served for it here, or the device or the number
            of threads cannot be used.
    """
    if threads is not None and threads < 1:
        raise ConfigError("threads is out of range", found=threads, fix="Use 1 or more, or None")
    device = best_device() if device == AUTO else _checked_device(device)
    if threads:
        torch.set_num_threads(threads)
    return targets.load_target(name, dtype, device, weights)


def _checked_device(device: str) -> str:
    """The device, if this PyTorch reaches it.

    Raises:
        ConfigError: it does not.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        fix = 'Use "cpu", or "auto", which takes a GPU if torch sees one'
        raise ConfigError(f"The device {device} cannot be used", found=reason, fix=fix) from error
    return device


def load_drafter(name: str | Path, target: Target) -> Drafter:
    """Load a drafter, ready to draft for ``target`` on its device.

    Args:
        name: a shipped name, such as "dspark" or "eagle3", or a checkpoint folder.

    Raises:
        CheckpointError: there is none, or its files are damaged or foreign.
        IncompatibleDrafterError: it is for another target.
        ConfigError: the name means no drafter.
    """
    folder = find_drafter(str(name), target.name)
    if folder is None:
        raise ConfigError("The name means no drafter", found=name, fix="Name a drafter")
    return _drafter_in(folder, target)


def load_models(
    target: str | Path | Target = DEFAULT_TARGET,
    drafter: str | Path | Drafter | None = AUTO,
    dtype: str = AUTO,
    *,
    weights: str = SAME,
    device: str = AUTO,
    threads: int | None = None,
) -> tuple[Target, Drafter | None]:
    """The target and its drafter, if there is one, ready to run; loaded ones stay what they are.

    Args:
        drafter: a shipped name or a checkpoint folder; "auto" takes the shipped one for this
            target, if there is one; "none" or None takes none.
        target, dtype, weights, device, threads: as for `load_target`.

    Raises:
        ConfigError, CheckpointError, IncompatibleDrafterError: see `load_target` and
            `load_drafter`.
    """
    name = target.name if isinstance(target, Target) else str(target)
    if not isinstance(target, Target) and name not in KNOWN_TARGETS:
        resolve_target(name)  # a wrong target is told before a wrong drafter
    found: Drafter | Path | None
    if isinstance(drafter, Drafter):
        found = drafter
    else:
        found = find_drafter(NONE if drafter is None else str(drafter), name)
    if not isinstance(target, Target):
        target = load_target(name, dtype, weights=weights, device=device, threads=threads)
    return target, _drafter_in(found, target) if isinstance(found, Path) else found


def _drafter_in(folder: Path, target: Target) -> Drafter:
    return checkpoint.load_drafter(folder, target, dtype=checkpoint.drafting_dtype(target))
