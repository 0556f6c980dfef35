"""Result files are found, told apart by schema, and checked before anything is drawn."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dspark.artifacts import write_artifact
from dspark.errors import DataError
from dspark.reporting.calibration_records import CalibrationCheck
from dspark.reporting.load import load
from dspark.reporting.records import Demo, Eval, HeadCost
from result_files import (
    PROVENANCE,
    eval_row,
    write_calibration,
    write_demo,
    write_eval,
    write_head_cost,
    write_train_logs,
)


def test_every_schema_in_a_folder_and_below(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    write_demo(folder / "demo.json")
    write_eval(folder / "a" / "eval.json", [eval_row("dspark")], "depth")
    write_calibration(folder / "a" / "b" / "check.json")
    write_head_cost(folder / "cost.json")
    write_train_logs(folder / "logs")
    results = load([folder])
    assert [name for name, _ in results.of(Demo)] == ["results/demo.json"]
    assert [(name, e.study) for name, e in results.of(Eval)] == [("results/a/eval.json", "depth")]
    assert results.of(CalibrationCheck)[0][0] == "results/a/b/check.json"
    assert len(results.of(HeadCost)[0][1].rows) == 8
    held_out = results.train_logs["results/logs/train_log_dspark.jsonl"]
    assert [held.minutes for held in held_out] == [10, 20, 30, 40, 50, 60]
    assert results.notes == []
    source = next(s for s in results.sources if s.name == "results/demo.json")
    assert source.sha256 == hashlib.sha256((folder / "demo.json").read_bytes()).hexdigest()
    assert source.provenance.argv == PROVENANCE["argv"]


def test_files_by_name_each_once(tmp_path: Path) -> None:
    write_demo(tmp_path / "r" / "demo.json")
    write_demo(tmp_path / "r" / "other.json")
    results = load([tmp_path / "r" / "demo.json", tmp_path / "r", tmp_path / "r" / "demo.json"])
    assert [name for name, _ in results.of(Demo)] == ["r/demo.json", "r/other.json"]


def test_folders_of_the_same_name_keep_apart(tmp_path: Path) -> None:
    for folder in "abc":
        write_demo(tmp_path / folder / "r" / "demo.json")
    results = load([tmp_path / folder / "r" for folder in "abc"])
    names = ["r/demo.json", "r/demo.json (2)", "r/demo.json (3)"]
    assert [source.name for source in results.sources] == names


def test_what_is_passed_over_is_noted(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    write_demo(folder / "demo.json")
    write_artifact(folder / "new.json", "dspark.eval/2", {})
    (folder / "list.json").write_text("[1, 2]")
    (folder / "odd.json").write_text('{"schema": ["x"]}')
    (folder / "train_log.jsonl").write_text('{"kind": "train", "step": 1}\n')
    results = load([folder])
    assert len(results.sources) == 1
    assert sorted(results.notes) == [
        "r/list.json is left out: no schema",
        "r/new.json is left out: unknown schema dspark.eval/2",
        "r/odd.json is left out: unknown schema ['x']",
        "r/train_log.jsonl is left out: no held-out measure",
    ]


def test_null_is_a_number_that_is_not_known(tmp_path: Path) -> None:
    row = eval_row("dspark") | {"accepted_length": None, "accepted_length_ci": None}
    data = write_eval(tmp_path / "eval.json", [row])
    assert data["rows"][0]["accepted_length"] is None
    read = load([tmp_path]).of(Eval)[0][1].rows[0]
    assert math.isnan(read.accepted_length)
    assert all(map(math.isnan, read.accepted_length_ci))


def broken(**changes: Any) -> dict[str, Any]:
    return eval_row("dspark") | changes


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (broken(shape={"num_layers": 2}), "rows.0.shape.block_size does not fit its schema"),
        (broken(prompts="many"), "rows.0.prompts does not fit"),
        (
            broken(per_prompt={"rounds": [1], "accepted": [[1, 0]], "reached": [[1]]}),
            "rows.0.per_prompt does not fit its schema (found: Value error, counts by prompt",
        ),
    ],
)
def test_a_file_that_breaks_its_schema_is_named(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    data = write_eval(tmp_path / "eval.json", [eval_row("dspark")])
    write_artifact(tmp_path / "eval.json", "dspark.eval/1", data | {"rows": [row]})
    with pytest.raises(DataError) as error:
        load([tmp_path])
    assert str(tmp_path / "eval.json") in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("content", [b'{"schema": "dspark.demo/1"', b"\xff\xfe\x00", b""])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    write_demo(tmp_path / "demo.json")
    (tmp_path / "half.json").write_bytes(content)
    with pytest.raises(DataError, match=r"half\.json is damaged: not valid JSON"):
        load([tmp_path])


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    rows = [{"kind": "held_out", "minutes": 1.0, "accepted_length": 1.5}]
    path = tmp_path / "train_log.jsonl"
    path.write_text("{broken\n" + json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match=r"train_log\.jsonl line 1"):
        load([tmp_path])
    path.write_text(json.dumps(rows[0] | {"minutes": "long"}) + "\n")
    with pytest.raises(DataError, match=r"train_log\.jsonl: minutes does not fit"):
        load([tmp_path])


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        load([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"no result file in .*no JSON file"):
        load([tmp_path])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"other\.json is left out: no schema"):
        load([tmp_path])
