"""Finding drafters and loading models for the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dspark.cli import common, outputs
from dspark.errors import CheckpointError, ConfigError, DataError, IncompatibleDrafterError
from tiny import tiny_drafter, tiny_home


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A drafter that ships for `smollm2-135m` alone."""
    folder = tmp_path / "shipped"

    def find(target: str, kind: str = "dspark") -> Path | None:
        return folder if (target, kind) == ("smollm2-135m", "dspark") else None

    monkeypatch.setattr(common, "shipped_drafter", find)
    return folder


def test_find_drafter(tmp_path: Path, shipped: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    assert common.find_drafter("none", "smollm2-135m") is None
    assert common.find_drafter("dspark", "smollm2-135m") == shipped
    assert common.find_drafter(str(own), "smollm2-135m") == own
    assert common.find_drafter(str(own), "some/model") == own


def test_named_drafters(tmp_path: Path, shipped: Path) -> None:
    own, odd = tmp_path / "own", tmp_path / "a=b"
    own.mkdir()
    odd.mkdir()
    assert common.named_drafters(None, "smollm2-135m") == [(None, shipped)]
    texts = [f"mine={own}", str(odd), "dspark"]
    found = [("mine", own), (None, odd), (None, shipped)]
    assert common.named_drafters(texts, "smollm2-135m") == found
    for text, match in ((f"={own}", "name is empty"), ("none", "nothing to judge")):
        with pytest.raises(ConfigError, match=match):
            common.named_drafters([text], "smollm2-135m")


def test_a_shipped_drafter_for_another_target(shipped: Path) -> None:
    with pytest.raises(IncompatibleDrafterError, match=r"smollm2-135m, target some/model.*none"):
        common.find_drafter("dspark", "some/model")


def test_no_such_drafter(tmp_path: Path, shipped: Path) -> None:
    for name in ("eagle9", str(tmp_path / "missing")):
        with pytest.raises(CheckpointError, match=r"no drafter .*shipped name"):
            common.find_drafter(name, "smollm2-135m")


def test_a_wrong_target_is_the_first_thing_to_hear_about(tmp_path: Path, shipped: Path) -> None:
    with pytest.raises(CheckpointError, match="the target is not a model folder"):
        common.load_models(str(tmp_path / "missing"), "dspark", "float32", None)


def test_load_models(tmp_path: Path) -> None:
    home = tiny_home(tmp_path, count=6)
    folder = tiny_drafter(home, steps=1)
    before = torch.get_num_threads()
    try:
        target, drafter = common.load_models(str(home / "target"), str(folder), "bfloat16", 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert target.dtype == torch.bfloat16
    assert drafter.config.block_size == 4
    assert not drafter.training
    target, drafter = common.load_models(str(home / "target"), "none", "float32", None)
    assert (target.dtype, drafter) == (torch.float32, None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_target_layers": 9}))
    with pytest.raises(IncompatibleDrafterError, match=r"drafter 9, target 8"):
        common.load_models(str(home / "target"), str(folder), "float32", None)


def test_check_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outputs.check_writable(tmp_path / "new.json")
    outputs.check_writable(tmp_path / "file")
    outputs.check_writable(tmp_path / "a" / "b" / "c.json")
    for wrong in (tmp_path, tmp_path / "file" / "x.json", tmp_path / "file" / "y" / "x.json"):
        with pytest.raises(DataError, match="cannot write"):
            outputs.check_writable(wrong)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_check_writable_asks_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="may not be written to"):
        outputs.check_writable(tmp_path / "x.json")
