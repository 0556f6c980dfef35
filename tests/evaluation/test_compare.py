"""Runs side by side: differences from the first, and held-out answers that are not the same."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from dspark.evaluation.compare import differences, hashes, side_by_side, warnings
from dspark.evaluation.runs import Run, read_run
from run_folders import write_run


def run(folder: Path, name: str, **own: Any) -> Run:
    return read_run(name, write_run(folder / name, **own))


def test_a_row_a_run(tmp_path: Path) -> None:
    other = {"drafter.markov_rank": 0, "optim.lr": 0.004, "data.store": "somewhere"}
    runs = [run(tmp_path, "base"), run(tmp_path, "other", config=other, device=None, step=600)]
    found = side_by_side(runs, "heads")
    assert found["study"] == "heads"
    assert found["warnings"] == []
    assert found["config"]["optim.lr"] == 0.002
    assert not {"out", "data.responses", "data.store"} & found["config"].keys()
    assert found["rows"][0] == {
        "name": "base",
        "kind": "dspark",
        "num_layers": 2,
        "block_size": 3,
        "markov_head_type": "vanilla",
        "markov_rank": 128,
        "draft_vocab_size": 16384,
        "parameters": None,
        "differs": {},
        "device": "Example GPU",
        "minutes": 6.67,
        "steps": 400,
        "anchors": 4000,
        "answers": 1000,
        "accepted_length": 1.8,
        "acceptance": [0.5, 0.4, 0.3],
        "curve": [[3.33, 2000, 1.5], [6.67, 4000, 1.8]],
    }
    row = found["rows"][1]
    assert row["differs"] == {"drafter.markov_rank": 0, "optim.lr": 0.004}
    assert (row["device"], row["minutes"], row["markov_head_type"]) == (None, 10.0, None)


def test_keys_that_only_one_run_has() -> None:
    first = {"a": 1, "old": 2, "unset": None}
    assert differences(first, {"a": 1, "new": [3], "b": None}) == {"old": None, "new": [3]}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"config": {"data.seed": 1}}, r"data\.seed differ"),
        ({"config": {"data.held_out_share": 0.1}}, r"data\.held_out_share differ"),
        ({"config": {"data.max_length": 64, "target": "x"}}, r"target, data\.max_length differ"),
        ({"inputs": {"answers.jsonl": "cd" * 32}}, "data files differ"),
    ],
)
def test_other_held_out_answers_are_told(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    runs = [run(tmp_path, "a"), run(tmp_path, "b"), run(tmp_path, "c", **change)]
    (line,) = warnings(runs)
    assert line.startswith("c was measured on other held-out answers than a (")
    assert re.search(what, line)


def test_the_same_data_under_another_name_is_the_same(tmp_path: Path) -> None:
    renamed = {
        "inputs": {"elsewhere/a.jsonl": "ab" * 32},
        "config": {"data.responses": ["a.jsonl"]},
    }
    runs = [run(tmp_path, "a"), run(tmp_path, "b", **renamed)]
    assert warnings(runs) == []
    assert side_by_side(runs)["rows"][1]["differs"] == {}


def test_hashes_name_no_folder_of_the_machine(tmp_path: Path) -> None:
    found = hashes([run(tmp_path, "a"), run(tmp_path, "b", checkpoint={})])
    assert list(found) == [
        "a/drafter/provenance.json",
        "a/train_log.jsonl",
        "b/drafter/provenance.json",
        "b/drafter/config.json",
        "b/train_log.jsonl",
    ]
    log = (tmp_path / "a" / "train_log.jsonl").read_bytes()
    assert found["a/train_log.jsonl"] == hashlib.sha256(log).hexdigest()
