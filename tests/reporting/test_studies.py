"""Studies: curves, bars and tables of drafters that differ in one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspark.reporting import series, studies
from dspark.reporting.evidence import Evidence
from dspark.reporting.load import load
from dspark.reporting.page import Block, Missing, Picture
from dspark.reporting.tables import Table
from result_files import DATASETS, PROVENANCE, eval_row, write_eval, write_head_cost


def study(folder: Path, name: str, drafters: list[dict[str, Any]]) -> dict[str, Any]:
    """An ablation's file: these drafters over all six datasets at temperature 1."""
    rows = [eval_row(dataset=dataset, **own) for own in drafters for dataset in DATASETS]
    return write_eval(folder / f"ablation_{name}.json", rows, name)


def evidence(folder: Path, temperature: float | None = None) -> Evidence:
    results = load([folder])
    return Evidence(results, series.lines(results), temperature)


def table(blocks: list[Block], place: int = 0) -> list[list[str]]:
    found = [block for block in blocks if isinstance(block, Table)][place]
    return [found.head, *([cell.text for cell in row] for row in found.rows)]


def test_depth_has_a_curve_and_its_drafters(tmp_path: Path) -> None:
    drafters = [
        {"drafter": f"depth{n}", "num_layers": n, "parameters": 1_000_000 * n} for n in (1, 2, 3)
    ]
    data = study(tmp_path, "depth", drafters)
    blocks = studies.depth(evidence(tmp_path))
    assert isinstance(blocks[0], Picture)
    head, *rows = table(blocks)
    assert head[2:6] == ["layers", "block size", "draft vocabulary", "parameters"]
    assert [row[2] for row in rows] == ["1", "2", "3"]
    assert rows[2][5] == "3,000,000"
    macro = data["macro"][0]
    assert rows[0][-1] == f"{macro['accepted_length']:.2f}"
    assert rows[0][-4:-1] == [f"{x:.2f}" for x in macro["by_domain"].values()]


def test_block_size_comes_with_the_cost_of_the_head(tmp_path: Path) -> None:
    study(tmp_path, "block_size", [{"drafter": f"b{n}", "block_size": n} for n in (4, 7, 12)])
    write_head_cost(tmp_path / "head_cost.json")
    blocks = studies.block_size(evidence(tmp_path))
    assert [type(block) for block in blocks] == [Picture, Table, Table]
    costs = table(blocks, 1)
    assert costs[1][1:5] == ["Example CPU, 2 processors", "dspark", "vanilla", "3"]
    assert costs[1][-1] == "0.2%"


def test_head_costs_of_two_machines_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_head_cost(tmp_path / "head_cost.json")
    monkeypatch.setitem(PROVENANCE, "device", "Example GPU")
    write_head_cost(tmp_path / "head_cost_gpu.json")
    picture = studies.block_size(evidence(tmp_path))[0]
    assert isinstance(picture, Picture)
    for machine in ("Example CPU, 2 processors", "Example GPU"):
        assert f"dspark, rnn head, {machine} 0.54 → 1.80" in picture.caption


def test_bars_say_what_differs(tmp_path: Path) -> None:
    heads = [("nohead", None), ("base", "vanilla"), ("rnn", "rnn")]
    study(tmp_path, "head", [{"drafter": n, "markov_head_type": h} for n, h in heads])
    sizes = [("vocab8k", 8192), ("fullvocab", None)]
    study(tmp_path, "vocabulary", [{"drafter": n, "draft_vocab_size": s} for n, s in sizes])
    blocks = studies.others(evidence(tmp_path))
    head, vocabulary = (block for block in blocks if isinstance(block, Picture))
    for words in ("nohead (no head) ", "base (vanilla) ", "; rnn 2."):
        assert words in head.caption
    for words in ("vocab8k (8,192 tokens) ", "fullvocab (all tokens) "):
        assert words in vocabulary.caption
    assert [row[4] for row in table(blocks, 1)[1:]] == ["8,192", "all"]


def test_a_study_of_any_name_is_shown(tmp_path: Path) -> None:
    study(tmp_path, "remedies", [{"drafter": "base"}, {"drafter": "soft", "boost": 0.02}])
    rows = [eval_row("dspark", dataset=dataset) for dataset in DATASETS]
    write_eval(tmp_path / "odd.json", rows, "../a b")
    blocks = studies.others(evidence(tmp_path))
    pictures = [block for block in blocks if isinstance(block, Picture)]
    assert [picture.file for picture in pictures] == ["study.png", "study_2.png"]
    assert pictures[1].caption.startswith("accepted_length by remedies")
    blocks = studies.others(evidence(tmp_path, 0.0))
    missing = [block for block in blocks if isinstance(block, Missing)]
    assert "--study '../a b'" in missing[2].command


def test_a_threshold_sweep_is_no_other_study(tmp_path: Path) -> None:
    study(tmp_path, "threshold", [{"drafter": "dspark"}, {"drafter": "d", "policy": "threshold:1"}])
    assert all(isinstance(block, Missing) for block in studies.others(evidence(tmp_path)))
