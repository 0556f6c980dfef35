"""Reads configuration files, what they extend and what the command line sets; words mistakes."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dspark.artifacts import bad_byte
from dspark.errors import ConfigError

Tree = dict[str, Any]
Key = tuple[str, ...]

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: str | Path, model_cls: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Reads a configuration file and everything it extends.

    Args:
        path: TOML file; its key `extends` names another one, relative to this file.
        model_cls: the model to check against.
        overrides: "a.b=value" each, applied last; the value is TOML, or bare text, or `none`.

    Raises:
        ConfigError: a file is missing or damaged, extends itself, or holds an unknown key or a
            value that does not fit; the message names key, file and the nearest valid key.
    """
    return checked(read_layers(path, overrides), model_cls, str(path))


@dataclass(frozen=True, slots=True)
class Layer:
    """What one file says, or the command line.

    Attributes:
        tree: its keys and values.
        origin: where each key stands, for mistakes.
    """

    tree: Tree
    origin: dict[Key, str]


def read_layers(path: str | Path, overrides: Sequence[str] = ()) -> list[Layer]:
    """A file with all that it extends and what the command line sets, the deepest base first.

    Raises:
        ConfigError: see `load_config`.
    """
    layers = _read(Path(path), ())
    whole = deepcopy(_together(layers))
    origin: dict[Key, str] = {}
    chosen = Layer({}, origin)
    for text in overrides:
        key, value = _parse_override(text)
        for tree in (whole, chosen.tree):
            _put(tree, key, value, text)
        origin[key] = f"--set {text}"
    return [*layers, chosen]


def checked(layers: Sequence[Layer], model_cls: type[Model], path: str) -> Model:
    """The layers on top of each other, checked against a model.

    Raises:
        ConfigError: see `load_config`.
    """
    try:
        return model_cls.model_validate(_together(layers))
    except ValidationError as exc:
        origin = {key: where for layer in layers for key, where in layer.origin.items()}
        raise _explain(exc, model_cls, origin, path) from exc


def _together(layers: Iterable[Layer]) -> Tree:
    return reduce(merge, (layer.tree for layer in layers), {})


def _read(path: Path, seen: tuple[Path, ...]) -> list[Layer]:
    """A file's layer above those of its bases."""
    if path.resolve() in seen:
        chain = " -> ".join(file.name for file in (*seen, path))
        raise ConfigError("configuration files extend each other in a circle", found=chain)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        user = f"extended by {seen[-1]}" if seen else None
        what = f"cannot read configuration file {path}"
        raise ConfigError(what, found=user or exc.strerror, fix="Check the path") from exc
    except UnicodeDecodeError as exc:
        found = bad_byte(exc)
        raise ConfigError(f"{path} is not UTF-8", found=found, fix="Save it as UTF-8") from exc
    except ValueError as exc:  # TOMLDecodeError
        raise ConfigError(f"{path} is not valid TOML", found=exc, fix="Repair the line") from exc
    base = tree.pop("extends", None)
    layer = Layer(tree, dict.fromkeys(_leaves(tree), str(path)))
    if base is None:
        return [layer]
    if not isinstance(base, str):
        fix = 'Write extends = "other.toml"'
        raise ConfigError(f"`extends` in {path} must be one file name", found=base, fix=fix)
    return [*_read(path.parent / base, (*seen, path.resolve())), layer]


def merge(base: Tree, over: Tree) -> Tree:
    """`base` with the keys of `over` on top; tables merge, anything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return result


def _leaves(tree: Tree, above: Key = ()) -> Iterable[Key]:
    for name, value in tree.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from _leaves(value, (*above, name))


def leaf_values(tree: Tree, above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested tables."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaf_values(value, f"{above}{name}.")
        else:
            yield above + name, value


def _parse_override(text: str) -> tuple[Key, Any]:
    name, equals, value = text.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise ConfigError("--set takes KEY=VALUE", found=text, fix="Example: --set optim.lr=6e-4")
    value = value.strip()
    if value.lower() in ("none", "null"):  # TOML has no word for "unset"
        return key, None
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _put(tree: Tree, key: Key, value: Any, text: str) -> None:
    for name in key[:-1]:
        inner = tree.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {text}: {name!r} is a value, not a section", found=inner)
        tree = inner
    tree[key[-1]] = value


# -------------------------------------------------------------------------------------- errors


def valid_keys(model: type[BaseModel], above: str = "") -> list[str]:
    """Every dotted key of a model, sections included."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(above + name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += valid_keys(inner, f"{above}{name}.")
    return keys


def _explain(
    exc: ValidationError, model: type[BaseModel], origin: dict[Key, str], path: str
) -> ConfigError:
    """The first thing wrong, in one line."""
    errors = exc.errors()
    # An unknown key often explains the missing one beside it, so it goes first.
    errors.sort(key=lambda error: error["type"] != "extra_forbidden")
    error, more = errors[0], len(errors) - 1
    key = tuple(str(part) for part in error["loc"])
    name = ".".join(key) or "the configuration"
    where = next((origin[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origin), path)
    rest = f" (and {more} more)" if more else ""
    if error["type"] == "extra_forbidden":
        return ConfigError(f"unknown key {name!r} in {where}{rest}", fix=_nearest(name, model))
    if error["type"] == "missing":
        return ConfigError(f"key {name!r} is missing in {path}{rest}", fix="Add it")
    message = error["msg"].removeprefix("Value error, ")
    found = error["input"] if not isinstance(error["input"], dict) else None
    return ConfigError(f"{name!r} in {where} cannot be used: {message}{rest}", found=found)


def _nearest(name: str, model: type[BaseModel]) -> str:
    """Advice on an unknown key: the likeliest valid one, else what its section holds."""
    keys = valid_keys(model)
    section, _, last = name.rpartition(".")
    beside = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == section}
    anywhere = {key.rpartition(".")[2]: key for key in keys}
    # A slip of the finger in the right section, else the right key in the wrong one.
    for names in (beside, anywhere):
        if near := difflib.get_close_matches(last, list(names), n=1, cutoff=0.6):
            return f"Did you mean {names[near[0]]!r}?"
    return "Valid keys: " + ", ".join(beside.values() or keys)
