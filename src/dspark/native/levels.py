"""Which of the compiled levels serves: the processor's best, a lower one, or PyTorch alone."""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

from dspark.errors import ConfigError
from dspark.native import compiling
from dspark.native.build import library

SWITCH = "DSPARK_KERNELS"
TORCH = "torch"  # none of ours

_ADDRESS, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
# table.h, Table: results and arguments of its functions, in order.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "pack": (None, [_INT, _ADDRESS, _ADDRESS, _INT]),
    "linear": (None, [_INT, *[_ADDRESS] * 5, _SIZE, _INT]),
    "attend": (
        _INT,
        [_INT, *[_ADDRESS, _SIZE] * 3, *[_ADDRESS] * 7, *[_SIZE] * 6, _FLOAT, _INT],
    ),
    "norm": (None, [_INT, *[_ADDRESS] * 3, *[_SIZE] * 2, _FLOAT, _INT]),
    "gate": (None, [_INT, *[_ADDRESS] * 2, *[_SIZE] * 2, _INT, _INT]),
    "rotate": (None, [_INT, _ADDRESS, _SIZE, *[_ADDRESS] * 3, *[_SIZE] * 3, _INT]),
    "argmax": (None, [_INT, *[_ADDRESS, _SIZE] * 2, _ADDRESS, *[_SIZE] * 2, _INT]),
    "follow": (None, [_INT, *[_ADDRESS] * 4, *[_SIZE] * 3, _INT]),
    "layers": (_INT, [_ADDRESS, _SIZE, *[_ADDRESS] * 5]),
    "context": (_INT, [_ADDRESS] * 5),
    "peak": (ctypes.c_double, [_INT, _SIZE]),
}


class _Table(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, type[Any]]]] = [
        ("name", ctypes.c_char_p),
        *((name, _ADDRESS) for name in _FUNCTIONS),
    ]


@cache
def _found() -> dict[str, Any]:
    """Functions of each level that this processor runs, worst first; none without a library."""
    if os.environ.get(SWITCH) == TORCH or (own := library()) is None:
        return {}
    own.dspark_level.restype, own.dspark_level.argtypes = ctypes.POINTER(_Table), [_SIZE]
    own.dspark_spent.restype, own.dspark_spent.argtypes = None, [_ADDRESS]
    levels: dict[str, Any] = {}
    while table := own.dspark_level(len(levels)):
        facts = table.contents
        functions = {
            name: ctypes.CFUNCTYPE(result, *arguments)(getattr(facts, name))
            for name, (result, arguments) in _FUNCTIONS.items()
        }
        levels[facts.name.decode()] = SimpleNamespace(**functions, spent=own.dspark_spent)
    return levels


class _Choice:
    """The level in use; None until somebody needs it."""

    name: str | None = None
    kernels: Any = None


def usable() -> tuple[str, ...]:
    """Levels that this machine runs, worst first; "torch" is always one."""
    return (TORCH, *_found())


@cache
def _asked(name: str) -> str | None:
    """The level that a variable asks for; None, with a warning, where it does not run here."""
    if name in usable():
        return name
    known = [TORCH, *(own for kinds in compiling.LEVELS.values() for own in kinds)]
    what = "does not run on this machine" if name in known else "is no level"
    warnings.warn(
        f"{SWITCH}={name} {what}, so another one serves (here: {', '.join(usable())})",
        stacklevel=3,
    )
    return None


def forced() -> str | None:
    """The level that `$DSPARK_KERNELS` asks for, where it asks for one that runs here."""
    name = os.environ.get(SWITCH)
    return _asked(name) if name else None


def current() -> str:
    """The level in use: the one asked for, else the best."""
    if _Choice.name is None:
        use(forced() or usable()[-1])
    assert _Choice.name is not None
    return _Choice.name


def use(name: str) -> None:
    """Let a level serve from now on. Weights that are packed already fit every level but "torch".

    Raises:
        ConfigError: it does not run here.
    """
    if name not in usable():
        raise ConfigError(
            "There is no such kernel level here", found=name, fix=f"Use {', '.join(usable())}"
        )
    _Choice.name, _Choice.kernels = name, _found().get(name)


def kernels() -> Any:
    """Functions of the level in use; None where PyTorch serves."""
    if _Choice.name is None:
        current()
    return _Choice.kernels


def best() -> Any:
    """Functions of the best level; for weights packed before PyTorch was chosen to serve."""
    return _found()[usable()[-1]]


def describe() -> str:
    """What `dspark doctor` says of the kernels."""
    level = current()
    if level != TORCH:
        others = ", ".join(name for name in usable()[1:] if name != level)
        return f"{level} (also {others})" if others else level
    if os.environ.get(SWITCH) == TORCH:
        return f"left out ({SWITCH}={TORCH}); PyTorch's operations serve"
    if compiling.machine() not in compiling.LEVELS:
        return f"none for {compiling.machine()}; PyTorch's operations serve"
    if len(usable()) > 1:
        return "not used here; PyTorch's operations serve"
    if compiling.find_compiler() is None:
        return "no C++ compiler found; PyTorch's operations serve"
    return "none that this processor runs; PyTorch's operations serve"
