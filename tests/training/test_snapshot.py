"""A run's state on disk: whole or not at all, and the same when it comes back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from dspark.config import OptimSection
from dspark.errors import CheckpointError
from dspark.training.optimisation import make_optimisers
from dspark.training.snapshot import load_snapshot, read_counters, save_snapshot


class Model(nn.Module):
    matrix_modules = ("backbone.",)

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, size)
        self.head = nn.Linear(size, 3)
        self.register_buffer("d2t", torch.arange(3))


def step(model: nn.Module, optimisers: list[torch.optim.Optimizer], seed: int) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    model.head(model.backbone(x).tanh()).square().mean().backward()
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()


def made(name: str, seed: int, size: int = 6) -> tuple[Any, list[torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    model = Model(size)
    return model, make_optimisers(cast(Any, model), OptimSection(name=name, lr=0.05))


def weights(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, name: str) -> None:
    model, optimisers = made(name, 0)
    for n in range(3):
        step(model, optimisers, n)
    model.d2t += 5
    save_snapshot(tmp_path, model, optimisers, {"step": 3})
    other, theirs = made(name, 1)
    load_snapshot(tmp_path, other, theirs)
    assert read_counters(tmp_path) == {"step": 3}
    assert other.d2t.tolist() == [5, 6, 7]
    for n in range(3, 6):
        step(model, optimisers, n)
        step(other, theirs, n)
    assert weights(other) == weights(model)


def test_a_state_of_before_the_first_step(tmp_path: Path) -> None:
    model, optimisers = made("adamw", 0)
    save_snapshot(tmp_path, model, optimisers, {"step": 0})
    other, theirs = made("adamw", 1)
    load_snapshot(tmp_path, other, theirs)
    assert weights(other) == weights(model)


def test_nothing_there(tmp_path: Path) -> None:
    assert read_counters(tmp_path) is None
    assert read_counters(tmp_path / "not" / "yet") is None


def test_nothing_is_pickled(tmp_path: Path) -> None:
    model, optimisers = made("adamw", 0)
    step(model, optimisers, 0)
    save_snapshot(tmp_path, model, optimisers, {"step": 1})
    files = sorted(p.name for p in (tmp_path / "state").iterdir())
    assert files == ["counters.json", "model.safetensors", "optimiser.safetensors"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"half"),
        ("model.safetensors", None),
        ("optimiser.safetensors", b""),
        ("optimiser.safetensors", None),
    ],
)
def test_damaged_tensors(tmp_path: Path, file: str, content: bytes | None) -> None:
    model, optimisers = made("adamw", 0)
    step(model, optimisers, 0)
    save_snapshot(tmp_path, model, optimisers, {"step": 1})
    path = tmp_path / "state" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if content == b"half" else content)
    with pytest.raises(CheckpointError, match=r"Cannot resume from .*state"):
        load_snapshot(tmp_path, model, optimisers)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", "\xff"])
def test_damaged_counters(tmp_path: Path, text: str) -> None:
    model, optimisers = made("adamw", 0)
    save_snapshot(tmp_path, model, optimisers, {"step": 1})
    (tmp_path / "state" / "counters.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="Cannot resume"):
        read_counters(tmp_path)


def test_another_shape(tmp_path: Path) -> None:
    model, optimisers = made("adamw", 0)
    save_snapshot(tmp_path, model, optimisers, {"step": 1})
    other, theirs = made("adamw", 0, size=7)
    with pytest.raises(CheckpointError, match=r"size mismatch|Error"):
        load_snapshot(tmp_path, other, theirs)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_older_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    model, optimisers = made("adamw", 0)
    step(model, optimisers, 0)
    save_snapshot(tmp_path, model, optimisers, {"step": 1})
    before = weights(model)
    step(model, optimisers, 1)
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "optimiser.safetensors":
            real(self, data[:10])
            raise OSError(code, os.strerror(code))
        return real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(CheckpointError, match=r"cannot write .*(disk space|quota)"):
            save_snapshot(tmp_path, model, optimisers, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    other, theirs = made("adamw", 1)
    load_snapshot(tmp_path, other, theirs)
    assert read_counters(tmp_path) == {"step": 1}
    assert weights(other) == before


def test_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    """The old state stands aside, the new one is not in place yet: the old one is taken up."""
    model, optimisers = made("adamw", 0)
    save_snapshot(tmp_path, model, optimisers, {"step": 4})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "state").rename(tmp_path / f".state.{gone.pid}.0a1b2c3d.old")
    assert read_counters(tmp_path) == {"step": 4}
    load_snapshot(tmp_path, model, optimisers)
