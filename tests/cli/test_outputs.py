"""Outputs are looked at before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark.cli import outputs
from dspark.errors import DataError


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
