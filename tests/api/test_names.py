"""What the names of drafters mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark.api import names
from dspark.errors import CheckpointError, ConfigError, IncompatibleDrafterError


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A drafter that ships for `smollm2-135m` alone."""
    folder = tmp_path / "shipped"

    def find(target: str, kind: str = "dspark") -> Path | None:
        return folder if (target, kind) == ("smollm2-135m", "dspark") else None

    monkeypatch.setattr(names, "shipped_drafter", find)
    return folder


def test_find_drafter(tmp_path: Path, shipped: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    assert names.find_drafter("none", "smollm2-135m") is None
    assert names.find_drafter("dspark", "smollm2-135m") == shipped
    assert names.find_drafter("auto", "smollm2-135m") == shipped
    assert names.find_drafter("auto", "some/model") is None
    assert names.find_drafter(str(own), "smollm2-135m") == own
    assert names.find_drafter(str(own), "some/model") == own


def test_named_drafters(tmp_path: Path, shipped: Path) -> None:
    own, odd = tmp_path / "own", tmp_path / "a=b"
    own.mkdir()
    odd.mkdir()
    assert names.named_drafters(None, "smollm2-135m") == [(None, shipped)]
    texts = [f"mine={own}", str(odd), "dspark"]
    found = [("mine", own), (None, odd), (None, shipped)]
    assert names.named_drafters(texts, "smollm2-135m") == found
    for text, match in ((f"={own}", "name is empty"), ("none", "nothing to judge")):
        with pytest.raises(ConfigError, match=match):
            names.named_drafters([text], "smollm2-135m")


def test_a_shipped_drafter_for_another_target(shipped: Path) -> None:
    with pytest.raises(IncompatibleDrafterError, match=r"smollm2-135m, target some/model.*none"):
        names.find_drafter("dspark", "some/model")


def test_no_such_drafter(tmp_path: Path, shipped: Path) -> None:
    for name in ("eagle9", str(tmp_path / "missing")):
        with pytest.raises(CheckpointError, match=r"no drafter .*shipped name"):
            names.find_drafter(name, "smollm2-135m")
