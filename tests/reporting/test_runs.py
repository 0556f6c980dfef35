"""Training runs side by side: names, kinds, differences, warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark.artifacts import write_artifact
from dspark.errors import DataError
from dspark.reporting import runs
from dspark.reporting.load import load
from dspark.reporting.page import Missing, Picture
from dspark.reporting.tables import Table
from system_files import SYSTEM


def test_a_file_of_runs_is_bars_a_table_and_its_warnings(tmp_path: Path) -> None:
    write_artifact(tmp_path / "r" / "runs.json", *SYSTEM["runs.json"])
    picture, table, warning = runs.compared(load([tmp_path / "r"]))
    assert isinstance(picture, Picture)
    assert picture.file == "runs.png"
    assert picture.caption.startswith("Study remedies: held-out accepted_length")
    assert "teacher-forced" in picture.caption
    assert "Kinds are not measured alike" in picture.caption
    assert picture.caption.endswith(" a (dspark) 1.849; dflash-b 1.591.")
    assert isinstance(table, Table)
    assert "r/runs.json" in table.title
    assert [(row[0].text, row[0].note) for row in table.rows] == [
        ("a", ""),
        ("dflash-b", "optim.lr=0.004"),
    ]
    cells = dict(zip(table.head, (cell.text for cell in table.rows[0]), strict=True))
    assert cells["kind"] == "dspark, vanilla head"
    assert cells["device"] == "Example GPU 80GB"
    assert cells["parameters"] == "–"
    assert cells["draft vocabulary"] == "16,384"
    assert cells["acceptance by slot"] == "0.47 0.38 –"
    assert warning == "b was measured on other held-out answers than a."


def test_every_file_has_a_picture_of_its_own(tmp_path: Path) -> None:
    schema, data = SYSTEM["runs.json"]
    write_artifact(tmp_path / "a.json", schema, data)
    one_kind = data | {"study": None, "warnings": [], "rows": data["rows"][:1]}
    write_artifact(tmp_path / "b.json", schema, one_kind)
    blocks = runs.compared(load([tmp_path]))
    pictures = [block for block in blocks if isinstance(block, Picture)]
    assert [picture.file for picture in pictures] == ["runs.png", "runs_2.png"]
    assert pictures[1].caption.startswith("Held-out accepted_length")
    assert "Kinds" not in pictures[1].caption
    assert pictures[1].caption.endswith(" a 1.849.")  # one kind needs no name


def test_without_any(tmp_path: Path) -> None:
    write_artifact(tmp_path / "floor.json", *SYSTEM["floor.json"])
    (missing,) = runs.compared(load([tmp_path]))
    assert isinstance(missing, Missing)
    assert "dspark compare" in missing.command


def test_a_file_without_rows_breaks_its_schema(tmp_path: Path) -> None:
    write_artifact(tmp_path / "runs.json", "dspark.runs/1", {"rows": []})
    with pytest.raises(DataError, match=r"runs\.json: rows does not fit its schema"):
        load([tmp_path])
