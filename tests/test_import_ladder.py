"""Imports go down the ladder of docs/architecture.md, never up and never sideways."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dspark

SOURCE = Path(__file__).parents[1] / "src" / "dspark"

# Each row may import only rows above it. The package itself (`dspark`, its version), the errors
# and the signals are free for all.
LADDER = [
    {"dspark", "errors", "signals"},
    {"core", "artifacts"},
    {"native", "fetching"},
    {"config", "maths", "tables"},
    {"attention"},
    {"targets"},
    {"drafters"},
    {"data"},
    {"training", "engine"},
    {"regeneration", "calibration", "profiling", "evaluation", "simulation"},
    {"api"},
    {"server", "reporting", "export"},
    {"cli"},
]
RUNG = {room: rung for rung, rooms in enumerate(LADDER) for room in rooms}

# Rooms that work where torch is not installed or should not be loaded.
TORCH_FREE = {"errors", "signals", "core", "artifacts", "config", "tables", "reporting"}

FILES = sorted(path for path in SOURCE.rglob("*.py") if "_drafters" not in path.parts)


def room_of(module: str) -> str:
    """The room of a dotted module name: its part after `dspark.`, or `dspark` itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, path: Path) -> Iterator[str]:
    """Dotted names a file imports, wherever in it, relative ones made absolute."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if module == "dspark":  # `from dspark import x` may name a room, or what lies in one
                for name in (name.name for name in node.names):
                    yield dspark._HOMES.get(name, f"dspark.{name}" if name in RUNG else "dspark")
            else:
                yield module


def at_run_time(path: Path) -> ast.AST:
    """A file's code without what only a type checker imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    return tree


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    here = room_of(module_of(path))
    assert here in RUNG, f"give {here!r} a rung in the ladder"
    # The package itself names, for type checkers, what it loads at first use.
    tree = at_run_time(path) if here == "dspark" else ast.parse(path.read_text(encoding="utf-8"))
    for module in imports(tree, path):
        if module.split(".")[0] != "dspark":
            continue
        there = room_of(module)
        assert there in RUNG, f"give {there!r} a rung in the ladder"
        if there != here:
            assert RUNG[there] < RUNG[here], f"{here} (rung {RUNG[here]}) imports {module}"


def test_the_walk_sees_violations() -> None:
    path = SOURCE / "maths" / "invented.py"
    code = (
        "def f():\n    from ..engine import x\n    from dspark import targets, __version__, LLM\n"
    )
    found = ["dspark.engine", "dspark.targets", "dspark", "dspark.api.llm"]
    assert list(imports(ast.parse(code), path)) == found


@pytest.mark.parametrize("room", sorted(TORCH_FREE))
def test_torch_free_rooms(room: str) -> None:
    for path in FILES:
        if room_of(module_of(path)) != room:
            continue
        tops = {name.split(".")[0] for name in imports(at_run_time(path), path)}
        heavy = tops & {"torch", "transformers"}
        assert not heavy, f"{path.name} imports {heavy}"


@pytest.mark.parametrize(
    "code",
    [
        "import dspark.cli.main",
        "from dspark.cli.main import main; assert main(['--help']) == 0",
        "from dspark.cli.main import main; assert main(['--version']) == 0",
        "from dspark.cli.main import main; assert main(['fetch', '--help']) == 0",
    ],
)
def test_the_front_door_is_light(code: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy'}"
    check = f"import sys; found = {heavy} & sys.modules.keys(); assert not found, found"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
