"""`python -O` leaves assertions out, and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fakes import tiny_target_folder

SOURCE = Path(__file__).parents[1] / "src" / "dspark"
FILES = sorted(path for path in SOURCE.rglob("*.py") if "_drafters" not in path.parts)
CHANGING = {"pop", "popleft", "append", "add", "update", "remove", "discard", "setdefault", "clear"}
CHANGING |= {"acquire", "release", "write", "read", "seek", "unlink", "next", "insert", "extend"}

ANSWER = """
import sys
from dspark.core import SamplingParams
from dspark.engine.engine import Engine
from dspark.targets.target import load_target
target = load_target(sys.argv[1], "float32")
engine = Engine(target, None, slots=2, max_len=64)
found = engine.generate([[5, 6, 7], [8, 9], [3]], SamplingParams(max_new_tokens=6))
print([request.output_ids for request in found], bool(engine.queue), __debug__)
"""


def changing_calls(tree: ast.AST) -> list[str]:
    """Calls inside assertions whose names say that they do something."""
    calls = [
        call.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
    ]
    names = [func.attr if isinstance(func, ast.Attribute) else ast.unparse(func) for func in calls]
    return [name for name in names if name in CHANGING]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_assertions_do_nothing(path: Path) -> None:
    assert not changing_calls(ast.parse(path.read_text(encoding="utf-8")))


def test_the_search_finds_some() -> None:
    assert changing_calls(ast.parse("assert queue.pop(3) is x\nassert next(i) == 1")) == [
        "pop",
        "next",
    ]


def test_answers_are_the_same(tmp_path: Path) -> None:
    folder = str(tiny_target_folder(tmp_path / "target"))
    plain, optimised = (
        subprocess.run(
            [sys.executable, *options, "-c", ANSWER, folder],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout.split()
        for options in ([], ["-O"])
    )
    assert plain[-1] == "True"
    assert optimised[-1] == "False"
    assert plain[:-1] == optimised[:-1]
