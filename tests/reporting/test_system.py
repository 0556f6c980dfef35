"""What the system costs and withstands stands on the page, with the machine of each file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from dspark.artifacts import write_artifact
from dspark.errors import DataError
from dspark.reporting import system
from dspark.reporting.load import Results, load
from dspark.reporting.page import Block, Missing, Picture
from dspark.reporting.tables import Table
from result_files import PROVENANCE
from system_files import SYSTEM, write_system

PARTS = (
    system.costs,
    system.floors,
    system.kernels,
    system.weights,
    system.starts,
    system.overheads,
    system.audits,
    system.soaks,
    system.profiles,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("all") / "r"
    write_system(folder)
    return load([folder])


def rows(blocks: list[Block], place: int = 0) -> list[dict[str, tuple[str, str]]]:
    """A table's rows: (text, note) by head."""
    table = [block for block in blocks if isinstance(block, Table)][place]
    assert all(len(row) == len(table.head) for row in table.rows)
    return [
        {head: (cell.text, cell.note) for head, cell in zip(table.head, row, strict=True)}
        for row in table.rows
    ]


def test_every_schema_is_read_and_shown(results: Results) -> None:
    assert results.notes == []
    assert {name for name, _ in results.records} == {f"r/{name}" for name in SYSTEM}
    for part in PARTS:
        assert not any(isinstance(block, Missing) for block in part(results)), part


def test_the_cost_picture_has_the_lines_for_short_blocks(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole table of the file is drawn."""
    drawn = []
    monkeypatch.setattr(system.cost_plot, "picture", lambda table: drawn.append(table) or b"")
    system.costs(results)
    assert [slots for slots, _ in drawn[0].short] == [1, 3]
    assert [requests for requests, _ in drawn[0].of_requests] == [1, 8]
    assert drawn[0].block == 7


def test_nothing_measured_names_the_commands() -> None:
    blocks = [part(Results()) for part in PARTS]
    commands = [block.command for (block,) in blocks if isinstance(block, Missing)]
    assert len(set(commands)) == len(PARTS)


def test_costs_are_drawn_with_their_ends(results: Results, tmp_path: Path) -> None:
    (picture,) = system.costs(results)
    assert isinstance(picture, Picture)
    assert picture.file == "cost.png"
    assert "14.80 ms for 1 to 360.40 ms for 512 tokens" in picture.caption
    assert "3.40 ms for 1 to 39.60 ms for 64 requests" in picture.caption
    schema, data = SYSTEM["cost.json"]
    for number in (1, 2):
        write_artifact(tmp_path / f"{number}.json", schema, data | {"draft": []}, PROVENANCE)
    again = [p for p in system.costs(load([tmp_path])) if isinstance(p, Picture)]
    assert [p.file for p in again] == ["cost.png", "cost_2.png"]
    assert "Drafting" not in again[0].caption


def test_starts(results: Results) -> None:
    first, second = rows(system.starts(results))
    assert (first["start"][0], first["first run, s"][0]) == ("generate", "9.50")
    assert first["median, s, and range"] == ("1.50", "1.20 to 1.75")
    assert second["median, s, and range"][0] == "2.50"


def test_floors(results: Results) -> None:
    blocks = system.floors(results)
    (row,) = rows(blocks)
    assert row["machine"][0] == "Example GPU 80GB"
    assert (row["floor, ms"][0], row["step, ms"][0]) == ("4.65", "13.84")
    assert row["step over floor"][0] == "2.98"
    assert rows(blocks, 1)[0]["matrix products"][0] == "72.0%"


def test_weights(results: Results) -> None:
    blocks = system.weights(results)
    (row,) = rows(blocks)
    assert [row[name][0] for name in ("MiB", "MiB, int8")] == ["256.5", "129.5"]
    assert row["likeliest token the same"][0] == "97.12%"
    assert [one["accepted_length"][0] for one in rows(blocks, 1)] == ["–", "2.50"]


def test_kernels(results: Results) -> None:
    blocks = system.kernels(results)
    assert isinstance(blocks[0], Picture)
    assert blocks[0].file == "kernels.png"
    (row,) = rows(blocks)
    assert (row["level"][0], row["measured"][0], row["met"][0]) == ("avx512_bf16", "2.45", "no")


def test_overheads(results: Results) -> None:
    (row,) = rows(system.overheads(results))
    assert row["overhead"] == ("5.4%", "1.5% to 9.4%")
    assert (row["engine alone, tokens/s"][0], row["over HTTP, tokens/s"][0]) == ("547.2", "517.8")


def test_audits(results: Results, tmp_path: Path) -> None:
    (row,) = rows(system.audits(results))
    assert row["verdict"][0] == "lossless"
    assert row["greedy texts"] == ("passed", "12 prompts, 50% identical, 0 beyond rounding")
    assert row["distribution"][1] == "5,626 tokens, p = 0.548, sees a distance of –"
    schema, data = SYSTEM["audit.json"]
    write_artifact(tmp_path / "lossy.json", schema, data | {"verdict": "lossy"})
    (table,) = system.audits(load([tmp_path]))
    assert isinstance(table, Table)
    assert [cell.text for cell in table.rows[0] if cell.strong] == ["lossy"]
    assert table.rows[0][1].text == "–"  # a file without provenance


def test_soaks(results: Results) -> None:
    blocks = system.soaks(results)
    engine, server, kills = (row["outcome"][0] for row in rows(blocks))
    assert engine == "ends: length 7,495, cancelled 2,039, stop 466; 249 preemptions"
    assert server == "2,217 of 2,218 texts equal, 0 errors, 134.1 tokens/s"
    assert kills.startswith("4 of 4 slots free afterwards, 0 cache positions held, 0 of 109")
    assert [row["memory grew, MiB"][0] for row in rows(blocks)] == ["0.2", "20.2", "–"]
    assert rows(blocks, 1)[0]["answers by status"][0] == "200: 209, 400: 1,791"


def test_profiles(results: Results) -> None:
    blocks = system.profiles(results)
    (row,) = rows(blocks)
    assert (row["anchors/s"][0], row["anchors/s, first pass"][0]) == ("561", "242")
    kinds = [part[""][0] for part in rows(blocks, 1)]
    assert kinds == ["phase"] + ["operation"] * system.SOME


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("cost.json", {"verify": []}),
        ("cost.json", {"verify": [[1, -1.0]]}),
        ("cost.json", {"draft": [[1, 0.1], [1, 0.2]]}),
        ("audit.json", {"greedy": None}),
        ("kernels.json", {"products": []}),
        ("soak_fuzz.json", {"rows": [{"endpoint": "GET /"}]}),
    ],
)
def test_a_file_that_breaks_its_schema(tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    schema, data = SYSTEM[file]
    write_artifact(tmp_path / file, schema, copy.deepcopy(data) | change)
    with pytest.raises(DataError, match="does not fit its schema"):
        load([tmp_path])
