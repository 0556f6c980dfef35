"""Configuration files: TOML with `extends`, checked against a documented model.

A file holds data only. Defaults live in the models below and nowhere else; `--set a.b=c` wins over
the file, the file over the file it extends.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dspark.errors import ConfigError

Tree = dict[str, Any]
Key = tuple[str, ...]


class Section(BaseModel):
    """Base of every configuration model: read-only, unknown keys refused, values as they stand:
    no number from a text or a true, and none that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# ------------------------------------------------------------------------------------ training


class DataSection(Section):
    """`[data]`: what the drafter learns from."""

    responses: list[str] = Field(
        min_length=1,
        description="JSON-lines files (.gz allowed) of the target's answers; looked for as given, "
        "then in the data folder",
    )
    held_out_share: float = Field(
        0.02, ge=0, lt=1, description="share of prompts kept away from training, 0 to 1"
    )
    max_length: int = Field(
        1024, ge=16, description="tokens of a sequence, prompt included; longer ones are cut"
    )
    seed: int = Field(0, ge=0, description="seed of the held-out split")
    store: str | None = Field(
        None, description="folder made by `dspark store`; unset computes states on the fly"
    )


class DrafterSection(Section):
    """`[drafter]`: the shape of the drafter."""

    kind: str = Field("dspark", description="name in the drafter registry")
    block_size: int = Field(7, ge=1, le=64, description="draft tokens a round (γ)")
    num_layers: int = Field(2, ge=1, description="draft layers")
    target_layer_ids: list[int] | None = Field(
        None,
        description="target layers to tap, counted from 0, never the last; unset spreads five "
        "evenly",
    )
    markov_rank: int = Field(
        128, ge=0, description="rank r of the sequential head; 0 leaves it out"
    )
    markov_head_type: Literal["vanilla", "gated", "rnn"] = Field(
        "vanilla", description="kind of sequential head"
    )
    confidence_head: bool = Field(True, description="whether slots estimate their own acceptance")
    draft_vocab_size: int = Field(
        8192,
        ge=0,
        description="most frequent tokens the drafter can name; 0 is the full vocabulary",
    )
    intermediate_size: int | None = Field(
        None, ge=1, description="width of the draft layers' MLP; unset takes the target's"
    )
    mask_token_id: int | None = Field(
        None, ge=0, description="id of MASK; unset picks a reserved id of the target"
    )


class LossSection(Section):
    """`[loss]`: weights of the terms."""

    ce: float = Field(0.1, ge=0, description="weight of cross-entropy with the true token")
    soft: float = Field(
        0.0, ge=0, description="weight of cross-entropy with the target's distribution"
    )
    tv: float = Field(0.9, ge=0, description="weight of the distance ‖p_d - p_t‖₁")
    bce: float = Field(1.0, ge=0, description="weight of the confidence head's loss")
    decay: float = Field(4.0, gt=0, description="slots until a slot's weight has fallen to 1/e")

    @model_validator(mode="after")
    def _one_kind(self) -> LossSection:
        if self.ce and self.soft:
            raise ValueError("set ce or soft to 0: one kind of cross-entropy at a time")
        return self


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimSection(Section):
    """`[optim]`: optimiser and learning rate."""

    name: Literal["adamw", "muon"] = Field("adamw", description="optimiser")
    lr: float = Field(1e-3, gt=0, description="highest learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.95), strict=False, description="moment decay rates of AdamW"
    )
    warmup_share: float = Field(0.04, ge=0, le=1, description="share of the run that warms up")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="course of the learning rate after warm-up"
    )
    final_lr_share: float = Field(
        0.05, ge=0, le=1, description="last learning rate, as share of lr"
    )
    grad_clip: float = Field(1.0, ge=0, description="highest gradient norm; 0 does not clip")


class RunSection(Section):
    """`[run]`: how long, how much at once, how often to report and save."""

    minutes: float | None = Field(80.0, gt=0, description="wall-clock limit in minutes")
    steps: int | None = Field(None, ge=1, description="limit in optimiser steps")
    anchors_per_sequence: int = Field(64, ge=1, description="anchors drawn from a sequence")
    sequences_per_step: int = Field(
        8, ge=1, description="sequences of an optimiser step, all processes together"
    )
    accumulate: int = Field(1, ge=1, description="micro-batches of an optimiser step")
    cache_gib: float = Field(
        4.0, ge=0, description="memory for target hidden states kept across epochs, in GiB"
    )
    passes_per_window: int = Field(
        3,
        ge=1,
        description="passes over the sequences whose hidden states fit in cache_gib before "
        "others take their place; each pass draws fresh anchors",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic; auto takes bfloat16 where the machine is fast at it"
    )
    threads: int | None = Field(
        None, ge=1, description="processor threads; unset leaves torch's own"
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, order and anchors")
    log_every: int = Field(10, ge=1, description="optimiser steps between log lines")
    checkpoint_every_minutes: float = Field(5.0, gt=0, description="minutes between checkpoints")
    eval_every_minutes: float = Field(10.0, gt=0, description="minutes between held-out measures")
    keep_at: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.25, 0.5],
        description="shares of the budget (0 to 1) after which the drafter is kept aside, in "
        "`out`/drafter-25 and so on",
    )

    @model_validator(mode="after")
    def _ends(self) -> RunSection:
        if self.minutes is None and self.steps is None:
            raise ValueError("set minutes, steps or both, else the run never ends")
        return self


class TrainConfig(Section):
    """Everything `dspark train` reads."""

    target: str = Field("smollm2-135m", description="known name, folder or Hugging Face id")
    out: str = Field(description="folder for checkpoints, logs and the finished drafter")
    data: DataSection
    drafter: DrafterSection = Field(default_factory=DrafterSection)
    loss: LossSection = Field(default_factory=LossSection)
    optim: OptimSection = Field(default_factory=OptimSection)
    run: RunSection = Field(default_factory=RunSection)


# ------------------------------------------------------------------------------------- loading

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
    tree, origin = _read(Path(path), ())
    for text in overrides:
        key, value = _parse_override(text)
        _put(tree, key, value, text)
        origin[key] = f"--set {text}"
    try:
        return model_cls.model_validate(tree)
    except ValidationError as exc:
        raise _explain(exc, model_cls, origin, str(path)) from exc


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[Tree, dict[Key, str]]:
    """The merged tree of a file and its bases, and which file each leaf came from."""
    if path.resolve() in seen:
        chain = " -> ".join(file.name for file in (*seen, path))
        raise ConfigError("configuration files extend each other in a circle", found=chain)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        user = f"extended by {seen[-1]}" if seen else None
        what = f"cannot read configuration file {path}"
        raise ConfigError(what, found=user or exc.strerror, fix="Check the path") from exc
    except ValueError as exc:  # TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(f"{path} is not valid TOML", found=exc, fix="Repair the line") from exc
    base = tree.pop("extends", None)
    origin = {key: str(path) for key in _leaves(tree)}
    if base is None:
        return tree, origin
    if not isinstance(base, str):
        fix = 'Write extends = "other.toml"'
        raise ConfigError(f"`extends` in {path} must be one file name", found=base, fix=fix)
    base_tree, base_origin = _read(path.parent / base, (*seen, path.resolve()))
    return merge(base_tree, tree), base_origin | origin


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
