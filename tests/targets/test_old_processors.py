"""bfloat16 without our kernels, on processors whose oneDNN has no bfloat16."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes import tiny_target_folder

CODE = """
import sys, torch, dspark
from dspark.engine.engine import Engine
from dspark import native
from dspark.targets.layers import can_reorder
from scripted import random_drafter

print("level", native.current())
print("packs", can_reorder(torch.ones(8, 8).bfloat16()), can_reorder(torch.ones(8, 8)))
for load in range(2):  # the second is a kept one
    target = dspark.load_target(sys.argv[1], "bfloat16")
    drafter = random_drafter(target, 4, gain=3.0)
    engine = Engine(target, drafter, "fixed:3", slots=2, max_len=64)
    prompts = [target.encode("Hello"), target.encode("Why is the sky blue?")]
    for temperature in (0.0, 1.0):
        params = dspark.SamplingParams(temperature=temperature, seed=1, max_new_tokens=8)
        print([request.output_ids for request in engine.generate(prompts, params)])
    target.states(prompts, [0, 1])
print("auto", dspark.load_target(sys.argv[1]).dtype_name)
"""
WAYS = {
    "switched off": {"DSPARK_KERNELS": "torch"},
    "no compiler": {"CXX": "/bin/false", "PATH": "/nowhere"},
}


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_without_kernels_and_without_onednns(tmp_path: Path, way: str) -> None:
    folder = tiny_target_folder(tmp_path / "target", layers=4)
    found = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)],
        capture_output=True,
        text=True,
        env=os.environ
        | WAYS[way]
        | {
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "DSPARK_CACHE": str(tmp_path / "cache"),
            "DSPARK_KEPT_GIB": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )
    assert found.returncode == 0, found.stderr
    level, packs, *answers, auto = found.stdout.splitlines()
    assert level == "level torch"
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        assert packs == "packs False True"
        assert auto == "auto float32"
    assert answers[:2] == answers[2:]
