"""`--profile`: where a step's time goes, without touching the run's folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dspark.targets.target import Target
from dspark.training import profile
from dspark.training.profile import peak_memory_gib, profile_steps
from tiny import tiny_recipe


def test_profile(
    home: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seconds, before = type(target).states, [0.0], torch.get_num_threads()

    def states(self: Target, *args: Any) -> Any:
        seconds[0] += 10
        return real(self, *args)

    def clock() -> float:
        seconds[0] += 1
        return seconds[0]

    monkeypatch.setattr(type(target), "states", states)
    monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=clock))
    found = profile_steps(tiny_recipe(home, tmp_path / "out"), 4)
    names = {row["name"] for row in found["phases"]}
    assert names == {"target states", "batch", "forward and loss", "backward", "optimiser"}
    assert sum(row["share"] for row in found["phases"]) == pytest.approx(1)
    times = [row["ms"] for row in found["phases"]]
    assert times == sorted(times, reverse=True)
    assert any("mm" in row["name"] for row in found["operations"])
    assert 0 < sum(row["share"] for row in found["operations"]) <= 1
    # The later steps have their states in memory: only looking at the clock takes them time.
    assert seconds[0] > 10
    anchors = found["anchors_per_s"]
    assert found["anchors_per_s_first_pass"] == pytest.approx(anchors / (seconds[0] - 3))
    assert found["peak_gib"] == pytest.approx(peak_memory_gib(), rel=0.2)
    assert found["threads"] == before
    assert not (tmp_path / "out").exists()


def test_threads_of_the_recipe_are_used(home: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        found = profile_steps(tiny_recipe(home, tmp_path / "out", run={"threads": 2}), 1)
    finally:
        torch.set_num_threads(before)
    assert found["threads"] == 2
