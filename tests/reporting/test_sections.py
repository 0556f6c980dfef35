"""The sections say on what machine every file was made, and what was left out."""

from __future__ import annotations

from pathlib import Path

from dspark.reporting.evidence import Evidence
from dspark.reporting.load import load
from dspark.reporting.page import Facts
from dspark.reporting.sections import sections
from dspark.reporting.tables import Table
from result_files import write_demo, write_train_logs
from system_files import write_system


def test_the_machine_of_every_file_and_what_was_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    write_demo(folder / "demo.json")
    write_system(folder)
    write_train_logs(folder)
    (folder / "new.json").write_text('{"schema": "dspark.new/1"}')
    summary, *_, provenance = sections(Evidence(load([folder]), []))
    table, left, _, *facts = provenance.blocks
    assert isinstance(table, Table)
    assert table.head == ["file", "schema", "made", "processor", "count", "device"]
    by_file = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    made = ["2026-01-02", "Example CPU", "2"]
    assert by_file["r/demo.json"] == ["dspark.demo/1", *made, "–"]
    assert by_file["r/floor.json"] == ["dspark.floor/1", *made, "Example GPU 80GB"]
    assert by_file["r/train_log_dspark.jsonl"] == ["training log", *"––––"]
    assert left == "r/new.json is left out: unknown schema dspark.new/1."
    assert [fact.summary for fact in facts if isinstance(fact, Facts)] == list(by_file)
    known = summary.blocks[0]
    assert isinstance(known, Table)
    rows = {row[0].text: row[1].text for row in known.rows}
    assert "Example GPU 80GB, Example CPU, 2 processors, Linux-x86_64" in rows["machine"]
    assert "unknown schema dspark.new/1" in rows["files left out"]
