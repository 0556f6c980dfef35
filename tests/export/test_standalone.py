"""Reduced drafters with the target's head in their own file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dspark.drafters.checkpoint import load_drafter, save_drafter
from dspark.errors import CheckpointError, ConfigError
from dspark.export.standalone import export_folder, whole_drafter
from dspark.targets.target import load_target
from fakes import tiny_target_folder
from scripted import random_drafter

SAYS = [5, 9, 11, 40, 77]


def reduced(target: Path, folder: Path, vocabulary: list[int] | None = SAYS) -> Path:
    return save_drafter(
        random_drafter(load_target(target, "float32"), vocabulary=vocabulary), folder
    )


@pytest.mark.parametrize("tie", [True, False])
def test_the_head_s_rows_are_the_target_s(tie: bool, tmp_path: Path, tmp_cache: Path) -> None:
    folder = tiny_target_folder(tmp_path / "target", tie=tie)
    drafter = reduced(folder, tmp_path / "drafter")
    whole = whole_drafter(drafter, str(folder))
    assert tmp_cache in whole.parents
    tensors, before = (
        load_file(whole / "model.safetensors"),
        load_file(drafter / "model.safetensors"),
    )
    target = load_target(folder, "float32")
    assert torch.equal(tensors.pop("lm_head.weight"), target.head_weight[SAYS])
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[key], before[key]) for key in before)
    assert (whole / "config.json").read_text() == (drafter / "config.json").read_text()
    load_drafter(whole, target)  # compares the rows with the target's again
    assert whole_drafter(drafter, str(folder)) == whole
    assert whole_drafter(whole, str(folder)) == whole  # what is whole stays where it is


def test_a_whole_vocabulary_needs_nothing(tmp_path: Path, tmp_cache: Path) -> None:
    folder = tiny_target_folder(tmp_path / "target")
    drafter = reduced(folder, tmp_path / "drafter", None)
    assert whole_drafter(drafter, "some/model") == drafter
    assert not tmp_cache.exists()


def test_a_target_without_its_weights(tmp_path: Path, tmp_cache: Path) -> None:
    folder = tiny_target_folder(tmp_path / "target")
    drafter = reduced(folder, tmp_path / "drafter")
    with pytest.raises(ConfigError, match="hf download some/model"):
        whole_drafter(drafter, "some/model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no output head"):
        whole_drafter(drafter, str(folder))


def test_another_folder_once_a_file_changes(tmp_path: Path, tmp_cache: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_text("1")
    first = export_folder(tmp_path / "m", "some/model")
    assert export_folder(tmp_path / "m", "some/model") == first
    (tmp_path / "m" / ".calibration.json.lock").write_text("")  # somebody calibrates meanwhile
    assert export_folder(tmp_path / "m", "some/model") == first
    assert export_folder(tmp_path / "m", "other/model") != first
    (tmp_path / "m" / "model.safetensors").write_text("22")
    assert export_folder(tmp_path / "m", "some/model") != first
