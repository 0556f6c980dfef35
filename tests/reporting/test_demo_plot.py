"""The picture of a demo result."""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from dspark.errors import ConfigError, DataError
from dspark.reporting.demo_plot import draw

RESULT: dict[str, Any] = {
    "target": "tiny",
    "drafter": "dspark",
    "dtype": "float32",
    "threads": 1,
    "temperature": 0.0,
    "prompts": 3,
    "plain_tokens_per_s": 10.0,
    "dspark_tokens_per_s": 25.0,
    "identical_texts": 1.0,
    "accept_by_position": [0.8, 0.5, math.nan],
    "domains": {
        "math": {"prompts": 3, "accepted_length": 2.5, "speedup": 2.5},
        "macro": {"prompts": 3, "accepted_length": 2.5, "speedup": 2.5},
    },
}


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize("name", ["demo.png", "below/demo.png", "demo.picture", "demo"])
def test_a_png_whatever_its_name(tmp_path: Path, name: str) -> None:
    draw(RESULT, tmp_path / name)
    width, height = size(tmp_path / name)
    assert width > 2 * height > 600


def test_transformers_has_a_bar_of_its_own(tmp_path: Path) -> None:
    draw(RESULT, tmp_path / "a.png")
    draw(RESULT | {"transformers_tokens_per_s": 4.0}, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_the_machine_is_named(tmp_path: Path) -> None:
    draw(RESULT, tmp_path / "a.png")
    draw(RESULT | {"machine": "a processor", "kernels": "ready"}, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_nothing_was_drafted(tmp_path: Path) -> None:
    draw(RESULT | {"accept_by_position": []}, tmp_path / "a.png")
    assert size(tmp_path / "a.png")


def test_what_was_there_stays_when_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError, match=r"cannot write .*demo\.png"):
        draw(RESULT, tmp_path / "file" / "demo.png")
    with pytest.raises(DataError, match="cannot write"):
        draw(RESULT, tmp_path)
    assert (tmp_path / "file").read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'dspark\[report\]'"):
        draw(RESULT, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
