"""Becoming another engine's server."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from typing import NoReturn

from dspark.errors import ConfigError
from dspark.export.plan import Plan

INSTALL = {
    "vllm": "pip install vllm",
    "ray": "pip install ray",
    "sglang": "pip install sglang",
    "llama-server": "brew install llama.cpp",
}


def start(plan: Plan) -> NoReturn:
    """Run a plan's steps; the last one takes this process's place, so this does not return.

    Raises:
        ConfigError: a program or a file is missing, or a step fails.
    """
    for step in plan.steps:
        if shutil.which(step[0]) is None:
            raise ConfigError(
                f"{step[0]} is not installed",
                found="no such program on PATH",
                fix=f"Install it, for example with: {INSTALL[step[0]]}",
            )
    for file in plan.files:
        if not file.exists():
            raise ConfigError(f"{file} is not there yet", fix="--print-command shows what makes it")
    for step in plan.steps[:-1]:
        _say(step)
        code = subprocess.run(step).returncode
        if code:
            raise ConfigError(
                f"{shlex.join(step)} failed",
                found=f"exit code {code}",
                fix="Its own words are above",
            )
    _say(plan.steps[-1])
    sys.stdout.flush()
    os.execvp(plan.steps[-1][0], plan.steps[-1])


def _say(step: tuple[str, ...]) -> None:
    print(f"dspark: starting {shlex.join(step)}", file=sys.stderr, flush=True)
