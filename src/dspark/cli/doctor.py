"""`dspark doctor`: what this machine offers and what is in place."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from dspark import __version__, artifacts
from dspark.drafters.shipped import shipped_drafter
from dspark.fetching import known

# Flags of /proc/cpuinfo that decide how fast matrix products are.
FLAGS = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"]
FLAGS += ["asimd", "bf16", "sve", "i8mm"]


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show torch, threads, instruction sets, devices, folders, default model and drafter.

    Examples:

        dspark doctor

        dspark doctor --json
    """
    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    lines = [line for name, value in facts.items() for line in _lines(name, value)]
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print(f"{label:<{width}}  {text}")


def examine() -> dict[str, Any]:
    """Everything `dspark doctor` shows, as plain values."""
    import torch

    from dspark import native

    cache, data = artifacts.cache_dir(), artifacts.data_dir()
    name = known.DEFAULT_TARGET
    drafter = shipped_drafter(name)
    ready = known.is_fetched(name)
    return {
        "dspark": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "platform": platform.platform(),
        "cpu": {
            "model": artifacts.cpu_model(),
            "count": artifacts.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "torch_uses": torch.backends.cpu.get_cpu_capability(),
            "kernels": native.describe(),
            "instruction_sets": _instruction_sets(),
            "memory_gib": _memory_gib(),
        },
        "devices": _devices(torch),
        "cache": {"folder": str(cache), "writable": _writable(cache), "free_gib": _free_gib(cache)},
        "kept_targets": _kept(),
        "data": {"folder": str(data), "present": data.is_dir()},
        "default_target": {
            "name": name,
            "present": ready,
            "folder": str(known.target_folder(name)),
            "fix": None if ready else f"dspark fetch {name}",
            **(_chosen(name) if ready else {}),
        },
        "default_drafter": {"present": drafter is not None, "folder": drafter and str(drafter)},
    }


def _chosen(name: str) -> dict[str, str]:
    """What the default target runs with here, and why."""
    from dspark.api.models import best_device
    from dspark.targets import kept
    from dspark.targets.choice import choose

    if (place := kept.find_place(known.target_folder(name))) is not None:
        spec = place.spec
    else:
        from dspark.targets.hf_loading import load_spec

        spec = load_spec(name)
    choice = choose(spec, device=best_device())
    runs_with = " ".join(part for part in (choice.level, choice.dtype) if part)
    return {"runs_with": runs_with, "because": choice.reason}


def _kept() -> dict[str, Any]:
    """Targets that are kept to start soon, and how much of them may be."""
    from dspark.targets import kept

    found = kept.summary()
    return {
        "folder": str(kept.folder()),
        "mib": round(sum(row["mib"] for row in found), 1),
        "limit_gib": round(kept.limit_bytes() / 2**30, 2),
        "targets": found,
    }


def _lines(name: str, value: Any) -> list[tuple[str, str]]:
    label = name.replace("_", " ")
    if isinstance(value, dict):
        return [
            (f"{label} {key.replace('_', ' ')}", _text(item))
            for key, item in value.items()
            if item is not None
        ]
    return [(label, _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return str(value)


def _instruction_sets() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    words = next((line.split() for line in lines if line.lower().startswith(("flags", "feat"))), [])
    return [flag for flag in FLAGS if flag in words]


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _devices(torch: Any) -> list[str]:
    names = ["cpu"]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count)]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def _existing(folder: Path) -> Path:
    """The folder itself or the nearest one above it that exists."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


def _writable(folder: Path) -> bool:
    return os.access(_existing(folder), os.W_OK)


def _free_gib(folder: Path) -> float:
    return round(shutil.disk_usage(_existing(folder)).free / 2**30, 1)
