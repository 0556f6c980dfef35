"""Starts are timed to the first sign of use, and one that fails is told."""

from __future__ import annotations

import sys
import time

import pytest

from dspark.errors import ConfigError
from dspark.evaluation import start
from dspark.evaluation.start import Way

SERVES = """
import sys, time
print("serving here", flush=True)
while True:
    time.sleep(60)
"""


def way(code: str, until: str) -> Way:
    return Way("own", "something", (sys.executable, "-c", code), until)


def test_each_way_is_run_in_turn_and_its_first_run_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter([9.0, 8.0, 3.0, 1.0, 1.0, 2.0, 2.0, 5.0])
    monkeypatch.setattr(start, "once", lambda way: next(took))
    some = [Way("a", "x", (), "end"), Way("b", "y", (), "end")]
    told: list[tuple[str, int]] = []
    rows = start.measure(some, 3, lambda name, run: told.append((name, run)))
    assert told == [(name, run) for run in range(4) for name in "ab"]
    assert [row["first_s"] for row in rows] == [9.0, 8.0]
    assert [row["seconds"] for row in rows] == [[3.0, 1.0, 2.0], [1.0, 2.0, 5.0]]
    assert [row["median_s"] for row in rows] == [2.0, 2.0]


def test_a_first_byte_comes_before_the_end() -> None:
    code = "import time; print('a', end='', flush=True); time.sleep(3); print('b')"
    before = time.perf_counter()
    took = start.once(way(code, "byte"))
    assert time.perf_counter() - before >= took + 2  # it is let go on to its end


def test_a_server_is_stopped_once_it_is_ready() -> None:
    assert start.once(way(SERVES, "line")) > 0


@pytest.mark.parametrize(
    ("code", "until"),
    [
        ("import sys; sys.exit('no such target')", "byte"),
        ("import sys; sys.exit('no such target')", "line"),
        ("import sys; print('a'); sys.exit('no such target')", "byte"),
        ("import sys; print('a'); sys.exit('no such target')", "end"),
    ],
)
def test_a_start_that_fails(code: str, until: str) -> None:
    with pytest.raises(ConfigError, match="no such target"):
        start.once(way(code, until))


def test_what_is_asked_reaches_every_verb() -> None:
    some = {way.name: way.command for way in start.ways("Hello?", ["--dtype", "float32"])}
    assert set(some) == {"generate", "serve", "doctor", "torch"}
    assert "Hello?" in some["generate"]
    for verb in ("generate", "serve"):
        assert some[verb][-2:] == ("--dtype", "float32")
