"""Reads the fields of a drafter's ``config.json`` one by one and words what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from dspark.artifacts.values import number, whole_number
from dspark.errors import CheckpointError

REQUIRED = object()  # in place of a default


class Fields:
    """The fields of one file, read one by one; null is as good as none.

    Every reader raises CheckpointError: a field is missing, or its value is of no use.
    """

    def __init__(self, given: dict[str, Any], where: str) -> None:
        self.given, self.where = given, where

    def refusal(self, name: str, why: str) -> CheckpointError:
        """The error about a value."""
        what = f"{self.where}: {name} is {why}"
        return CheckpointError(what, found=self.given.get(name), fix="Export the drafter again")

    def whole(self, name: str, least: int = 1, default: Any = REQUIRED) -> Any:
        return self._checked(name, default, lambda value: whole_number(value, "it", least))

    def number(self, name: str, default: Any = REQUIRED) -> Any:
        return self._checked(name, default, lambda value: number(value, "it", above=True))

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, "neither true nor false")
        return value

    def text(self, name: str, default: str, among: Collection[str] | None = None) -> str:
        value = self.get(name, default)
        if not isinstance(value, str) or (among is not None and value not in among):
            raise self.refusal(name, f"none of {', '.join(among)}" if among else "no text")
        return value

    def architecture(self) -> str:
        """The first of those named."""
        names = self.get("architectures", ["none"]) or ["none"]
        return str(names[0] if isinstance(names, list) else names)

    def taps(self, may_be_none: bool) -> tuple[int, ...]:
        """Target layers to tap."""
        taps = self.get("target_layer_ids", REQUIRED)
        if not isinstance(taps, list) or any(type(tap) is not int for tap in taps):
            raise self.refusal("target_layer_ids", "not a list of layers")
        if not (taps or may_be_none) or len(set(taps)) < len(taps):
            raise self.refusal("target_layer_ids", "a list with a layer twice" if taps else "empty")
        return tuple(taps)

    def get(self, name: str, default: Any) -> Any:
        """A value as it stands."""
        value = self.given.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            found = f"no {name!r}" if name not in self.given else f"{name!r} is null"
            raise CheckpointError(
                f"{self.where} lacks a field", found=found, fix="Export the drafter again"
            )
        return default

    def _checked(self, name: str, default: Any, check: Callable[[Any], Any]) -> Any:
        value = self.get(name, default)
        try:
            return value if value is default else check(value)
        except ValueError as error:
            why = str(error).partition(", ")[2]
            raise self.refusal(name, why) from error

    def rope_theta(self) -> float:
        """The rotary base; every place that may scale positions is looked at."""
        bases = {}
        for name in ("rope_parameters", "rope_scaling"):
            rope = self.get(name, {})
            if not isinstance(rope, dict):
                raise self.refusal(name, "no object")
            kind = rope.get("rope_type") or rope.get("type") or "default"
            if kind != "default" or rope.get("factor", 1) not in (None, 1):
                raise self.refusal(
                    name, "a scaling of rotary positions, and only plain ones are read"
                )
            inner = Fields(rope, f"{self.where}: {name}")
            if (base := inner.number("rope_theta", default=None)) is not None:
                bases[f"{name}.rope_theta"] = base
        if not bases or self.given.get("rope_theta") is not None:
            bases["rope_theta"] = self.number("rope_theta")
        if len(set(bases.values())) > 1:
            raise CheckpointError(
                f"{self.where}: {' and '.join(bases)} differ",
                found=", ".join(f"{base:g}" for base in bases.values()),
                fix="Leave the wrong one out",
            )
        return min(bases.values())

    def check_layers(self) -> None:
        """Refuse layers of another kind than the backbone's, which would go unseen."""
        for name, plain in (
            ("hidden_act", "silu"),
            ("attention_bias", False),
            ("use_sliding_window", False),
            ("partial_rotary_factor", 1),
        ):
            if self.get(name, plain) != plain:
                raise self.refusal(name, f"not read; it must be {str(plain).lower()}")
        kinds = self.get("layer_types", [])
        if not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention"}:
            raise self.refusal("layer_types", "not read; all must be full_attention")
