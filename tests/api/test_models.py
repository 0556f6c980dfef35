"""From names to models that are ready to run."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch

from dspark.api.models import load_drafter, load_models, load_target
from dspark.errors import CheckpointError, ConfigError, IncompatibleDrafterError
from tiny import home_with_drafter, tiny_drafter, tiny_home


def test_a_wrong_target_is_told_before_a_wrong_drafter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the target is not a model folder"):
        load_models(str(tmp_path / "missing"), "eagle9", "float32")


def test_load_models(tmp_path: Path) -> None:
    home = tiny_home(tmp_path, count=6)
    folder = tiny_drafter(home, steps=1)
    before = torch.get_num_threads()
    try:
        target, drafter = load_models(str(home / "target"), str(folder), "bfloat16", threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert target.dtype == torch.bfloat16
    assert drafter.config.block_size == 4
    assert not drafter.training
    target, drafter = load_models(str(home / "target"), "none", "float32")
    assert (target.dtype, drafter) == (torch.float32, None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_target_layers": 9}))
    with pytest.raises(IncompatibleDrafterError, match=r"drafter 9, target 8"):
        load_models(str(home / "target"), str(folder), "float32")


def test_loaded_models_stay_what_they_are(tmp_path: Path) -> None:
    home = home_with_drafter(tmp_path)
    target = load_target(home / "target", "float32")
    drafter = load_drafter(home / "drafter", target)
    assert load_models(target, drafter) == (target, drafter)
    assert load_models(target) == (target, None)  # none ships for it
    again = load_models(target, home / "drafter")
    assert again[0] is target
    assert again[1] is not None
    assert again[1].sha256 == drafter.sha256
    with pytest.raises(ConfigError, match="no drafter"):
        load_drafter("none", target)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_that_cannot_be(tmp_path: Path, threads: int) -> None:
    home = tiny_home(tmp_path, count=1)
    with pytest.raises(ConfigError, match="threads is out of range"):
        load_target(home / "target", "float32", threads=threads)


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_cannot_be_reached(tmp_path: Path, device: str) -> None:
    home = tiny_home(tmp_path, count=1)
    with pytest.raises(ConfigError, match=f"The device {device} cannot be used"):
        load_target(home / "target", "float32", device=device)


def test_the_library_has_the_defaults_of_the_command_line() -> None:
    """A type, weights and a drafter chosen by the same words, whoever asks."""
    from dspark.api.llm import LLM
    from dspark.cli import generate, serve

    for function in (load_target, load_models, LLM.__init__):
        given = inspect.signature(function).parameters
        for command in (generate.command, serve.command):
            asked = inspect.signature(command).parameters
            for name in {*given} & {"dtype", "weights", "drafter", "verification", "threads"}:
                assert given[name].default == asked[name].default, name
