"""`--profile`: where a step's time goes, without touching the run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dspark.training.profile import peak_memory_gib, profile_steps
from tiny import tiny_recipe


def test_profile(home: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    found = profile_steps(tiny_recipe(home, tmp_path / "out"), 4)
    names = {row["name"] for row in found["phases"]}
    assert names == {"target states", "batch", "forward and loss", "backward", "optimiser"}
    assert sum(row["share"] for row in found["phases"]) == pytest.approx(1)
    times = [row["ms"] for row in found["phases"]]
    assert times == sorted(times, reverse=True)
    assert any("mm" in row["name"] for row in found["operations"])
    assert 0 < sum(row["share"] for row in found["operations"]) <= 1
    # States in memory make the later steps the faster ones.
    assert found["anchors_per_s"] > found["anchors_per_s_first_pass"] > 0
    states = next(row for row in found["phases"] if row["name"] == "target states")
    assert states["share"] < 0.5
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
