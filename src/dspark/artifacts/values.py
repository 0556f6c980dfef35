"""Values read from files, checked: JSON takes a true for a 1, and NaN for a number."""

from __future__ import annotations

import math
from typing import Any


def whole_number(value: Any, name: str, least: int = 0) -> int:
    """A whole number of at least `least`.

    Raises:
        ValueError: it is none; text and true are none either.
    """
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {value!r}, not a whole number from {least} on")
    return value


def number(
    value: Any, name: str, *, least: float = 0.0, most: float = math.inf, above: bool = False
) -> float:
    """A finite number from `least` to `most`.

    Args:
        above: it is more than `least`.

    Raises:
        ValueError: it is none; text and true are none either.
    """
    fine = type(value) in (int, float) and least <= value <= most and abs(value) < math.inf
    if not fine or (above and value == least):
        wanted = f"above {least:g}" if above else f"from {least:g} on"
        if most < math.inf:
            wanted = f"{wanted.removesuffix(' on')} to {most:g}"
        raise ValueError(f"{name} is {value!r}, not a number {wanted}")
    return float(value)
