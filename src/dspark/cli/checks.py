"""What a command line says, checked before a verb runs: no model is loaded and torch not imported.

A parameter is known by its name, which means the same in every verb. What only one verb has it
checks itself, first thing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from dspark.api.names import AUTO, find_drafter, named_drafters, resolve_name
from dspark.artifacts import find_data
from dspark.core import SamplingParams
from dspark.data.bad_rows import BadRows
from dspark.errors import CheckpointError, ConfigError, DataError, RequestError

if TYPE_CHECKING:
    from dspark.config import TrainConfig

Given = dict[str, Any]
DTYPES = ("auto", "bfloat16", "float32", "float16")
WEIGHTS = ("same", "int8")
OUTPUTS = ("json_file", "plot", "trace", "out")
DRAWING = ("temperature", "top_p", "top_k", "seed", "max_new_tokens")
_ANY_BLOCK = 2**31
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DATASET = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")


def checked(command: Callable[..., Any]) -> Callable[..., Any]:
    """A verb's function that first looks at what it is given."""

    @wraps(command)
    def run(**given: Any) -> Any:
        if given.get("drafter") == AUTO:  # results and errors name what it comes to
            given["drafter"] = resolve_name(AUTO, given["target"])
        check(given, lambda name: _option(command, name))
        return command(**given)

    return run


def check(given: Given, option: Callable[[str], str]) -> None:
    """Refuse parameters that no run could use.

    Args:
        given: by name.
        option: how one is written on the command line.

    Raises:
        DSparkError: naming the first.
    """
    _drawing(given)
    for name, value in given.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise ConfigError(f"{option(name)} is no finite number", found=one)
    for name, look in CHECKS.items():
        if given.get(name) is not None:
            look(given[name], given)
    _outputs(given, option)


def _option(command: Callable[..., Any], name: str) -> str:
    """How a verb's parameter is written: as its annotation says, else by its name."""
    hint = get_type_hints(command, include_extras=True).get(name)
    for part in getattr(hint, "__metadata__", ()):
        # Within an annotation typer takes the first word for a default, and means it as a name.
        for word in (getattr(part, "default", None), *(getattr(part, "param_decls", None) or ())):
            if isinstance(word, str) and word.startswith("--"):
                return word
    return f"--{name.replace('_', '-')}"


# ---- what runs ------------------------------------------------------------------------------


def check_prompt(text: str) -> None:
    """Refuse a prompt without a word, as the target would.

    Raises:
        RequestError: it is empty.
    """
    if not text.strip():
        raise RequestError("The prompt is empty", fix="Give at least one word")


def _prompt(text: str, given: Given) -> None:
    if text != "-":  # standard input
        check_prompt(text)


def _target(target: str, given: Given) -> None:
    from dspark.fetching.known import KNOWN_TARGETS
    from dspark.targets.names import resolve_target

    if target in KNOWN_TARGETS:
        return
    found = resolve_target(target)
    if isinstance(found, Path):
        _fields(found, f"Cannot load the target {target}")
    elif not _HUB_ID.fullmatch(target):
        raise CheckpointError(
            f"Cannot load the target {target}",
            found="neither a folder nor a Hugging Face id",
            fix=f"Give one of these, or one of: {', '.join(KNOWN_TARGETS)}",
        )


def _fields(folder: Path, what: str) -> dict[str, Any]:
    """A model's config.json, as far as can be told without the model's library."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"it holds no fields but a {type(fields).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            what,
            found=f"config.json: {getattr(error, 'strerror', None) or error}",
            fix="The folder must hold a whole config.json and model.safetensors",
        ) from error
    return fields


def _drafter_fields(folder: Path) -> dict[str, Any]:
    return _fields(folder, f"Cannot read the drafter in {folder}")


def _drafter(drafter: str | list[str], given: Given) -> None:
    for folder in _drafter_folders(drafter, given):
        if folder is not None:
            _drafter_fields(folder)
            if not (folder / "model.safetensors").is_file():
                raise CheckpointError(
                    f"Cannot read the drafter in {folder}",
                    found="no model.safetensors",
                    fix="The folder must hold a whole config.json and model.safetensors",
                )


def _drafter_folders(drafter: str | list[str], given: Given) -> list[Path | None]:
    if isinstance(drafter, str):
        return [find_drafter(drafter, given["target"])]
    return [folder for _, folder in named_drafters(drafter, given["target"])]


def _dtype(dtype: str, given: Given) -> None:
    if dtype not in DTYPES:
        raise ConfigError("Unknown dtype", found=dtype, fix=f"Use one of {', '.join(DTYPES)}")


def _weights(weights: str, given: Given) -> None:
    if weights not in WEIGHTS:
        raise ConfigError("Unknown weights", found=weights, fix=f"Use one of {', '.join(WEIGHTS)}")


def _policy(policy: str | list[str], given: Given) -> None:
    """A policy is known, has the drafter that it needs, and drafts no more than its block."""
    drafter, block_size = given.get("drafter"), None
    if isinstance(drafter, str):
        (folder,) = _drafter_folders(drafter, given)
        block_size = 0 if folder is None else _block_size(folder)
    for name in [policy] if isinstance(policy, str) else policy:
        check_policy(name, block_size)


def check_policy(name: str, block_size: int | None = None) -> None:
    """Refuse a policy by its name.

    Args:
        block_size: of the drafter, 0 for none; None where it is not known yet.

    Raises:
        ConfigError: nobody knows it, or it does not fit the drafter.
    """
    from dspark.engine.policy_names import ADAPTIVE, parse_policy

    if name not in ADAPTIVE or block_size == 0:  # the others need tables to be made
        parse_policy(name, _ANY_BLOCK if block_size is None else block_size)


def _block_size(folder: Path) -> int | None:
    """Draft tokens of a drafter's round, if its config.json says so in words of ours."""
    fields = _drafter_fields(folder)
    size = fields.get("block_size", fields.get("ttt_length"))
    return size if type(size) is int and size > 0 else None


def _data(names: Sequence[str], given: Given) -> None:
    """Files that are there; owner/name may be a data set elsewhere."""
    for name in names:
        if _DATASET.fullmatch(name) and not Path(name).suffix and not Path(name).exists():
            continue
        check_file(find_data(name))


def _prompts(source: str | int, given: Given) -> None:
    if isinstance(source, str):  # `bench weights` counts them
        _data([source], given)


def check_file(path: Path, what: str | None = None) -> None:
    """Refuse what is no file.

    Args:
        what: of the error; None says that it cannot be read.

    Raises:
        DataError: it is a folder, or not there.
    """
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "no such file"
        raise DataError(what or f"cannot read {path}", found=found, fix="Give a file")


def _gguf(file: Path, given: Given) -> None:
    check_file(file, f"cannot read {file} as a GGUF file")


def _bad_rows(mode: str, given: Given) -> None:
    BadRows(mode)


CHECKS: dict[str, Callable[[Any, Given], None]] = {
    "prompt": _prompt,
    "dtype": _dtype,
    "weights": _weights,
    "target": _target,
    "drafter": _drafter,
    "policy": _policy,
    "data": _data,
    "prompts": _prompts,
    "exclude": _data,
    "bad_rows": _bad_rows,
    "only": _data,
    "gguf": _gguf,
}


# ---- how it is drawn, and where it goes -----------------------------------------------------


def _drawing(given: Given) -> None:
    """Ranges of what the sampler is told, of several temperatures each."""
    named = {name: given[name] for name in DRAWING if given.get(name) is not None}
    if not named:
        return
    temperatures = named.pop("temperature", 0.0)
    for one in temperatures if isinstance(temperatures, list) else [temperatures]:
        SamplingParams(temperature=one, **named)


def _outputs(given: Given, option: Callable[[str], str]) -> None:
    """No two outputs are the same file."""
    seen: dict[Path, str] = {}
    for name in OUTPUTS:
        if isinstance(path := given.get(name), Path):
            place = path.absolute()
            if place in seen:
                both = f"{seen[place]} and {option(name)}"
                raise ConfigError(f"{both} name the same file", found=path, fix="Use two")
            seen[place] = option(name)


def read_recipe(path: Path, overrides: Sequence[str]) -> TrainConfig:
    """A recipe whose target and responses are there.

    What recipes of all kinds share is checked first: a kind's own keys lie beside its drafter,
    which brings torch along.

    Raises:
        ConfigError, CheckpointError, DataError: naming what is wrong or missing.
    """
    from dspark import config

    layers = config.read_layers(path, overrides)
    shared = [
        replace(layer, tree={k: v for k, v in layer.tree.items() if k != "drafter"})
        for layer in layers
    ]
    known = config.checked(shared, config.TrainConfig, str(path))
    _target(known.target, {})
    for name in known.data.responses:
        check_file(find_data(name))
    from dspark.training import recipe

    return recipe.read_recipe(path, overrides)
