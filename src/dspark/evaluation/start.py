"""How long a start takes: fresh processes, from their launch to the first sign of use.

The first run of each is not counted: it fills caches of models, kernels and the disk. The ways take
turns, so that drift of the machine's speed falls on all alike.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import IO, Any

from dspark.errors import ConfigError

SCHEMA = "dspark.start/1"
_DSPARK = (sys.executable, "-m", "dspark.cli.main")
_END_S = 60.0  # that a server may take to stop

OnRun = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Way:
    """One kind of start.

    Attributes:
        name: short.
        what: that is waited for.
        command: of the process.
        until: "byte" or "line" of standard output, or "end" of the process.
    """

    name: str
    what: str
    command: tuple[str, ...]
    until: str


def ways(prompt: str, models: Sequence[str]) -> list[Way]:
    """The starts that people wait for, and the import of PyTorch, which is part of them.

    Args:
        prompt: for `generate`.
        models: options that name target, drafter and number types.
    """
    answer = ("generate", prompt, "--max-new-tokens", "8", *models)
    serve = ("serve", "--port", "0", *models)
    return [
        Way("generate", "first token", (*_DSPARK, *answer), "byte"),
        Way("serve", "ready for requests", (*_DSPARK, *serve), "line"),
        Way("doctor", "all said", (*_DSPARK, "doctor"), "end"),
        Way("torch", "import of PyTorch alone", (sys.executable, "-c", "import torch"), "end"),
    ]


def measure(
    some: Sequence[Way], times: int, on_run: OnRun = lambda name, run: None
) -> list[dict[str, Any]]:
    """Seconds of each way, the first run apart.

    Args:
        times: runs of each that count.
        on_run: called before each run, with the way's name and the run from 0.

    Raises:
        ConfigError: a process failed.
    """
    seconds: dict[str, list[float]] = {way.name: [] for way in some}
    for run in range(times + 1):
        for way in some:
            on_run(way.name, run)
            seconds[way.name].append(once(way))
    return [
        {
            "way": way.name,
            "what": way.what,
            "first_s": round(seconds[way.name][0], 3),
            "seconds": [round(value, 3) for value in seconds[way.name][1:]],
            "median_s": round(median(seconds[way.name][1:]), 3),
        }
        for way in some
    ]


def once(way: Way) -> float:
    """Seconds from the launch of a process to what is waited for.

    Raises:
        ConfigError: it ended without, or with an error.
    """
    with tempfile.TemporaryFile() as said:
        start = perf_counter()
        process = subprocess.Popen(
            way.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        )
        assert process.stdout is not None
        try:
            came = _wait(process.stdout, way.until)
            seconds = perf_counter() - start
            if way.until == "line":
                process.terminate()
                process.communicate(timeout=_END_S)
            else:
                process.communicate()
        finally:
            process.kill()
            process.wait()
        if not came or (way.until != "line" and process.returncode):
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or ["nothing"]
            raise ConfigError(
                f"dspark {way.name} did not start",
                found=f"exit code {process.returncode}: {lines[-1][:200]}",
                fix=f"Run it by hand: {' '.join(way.command[1:])}",
            )
    return seconds


def _wait(output: IO[bytes], until: str) -> bool:
    """Whether what is waited for came."""
    if until == "end":
        output.read()
        return True
    return bool(output.read(1) if until == "byte" else output.readline())
