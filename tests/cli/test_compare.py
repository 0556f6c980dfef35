"""`dspark compare` on the command line: tables, file, warnings, refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dspark.cli import main as cli
from run_folders import write_run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runs `base`, `deep` and `[odd]` lie; the working folder."""
    folder = tmp_path / "runs"
    write_run(folder / "base")
    write_run(folder / "deep", config={"drafter.num_layers": 3})
    write_run(folder / "[odd]", config={"drafter.kind": "mtp", "data.seed": 1}, device=None)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    return folder


def compare(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    code = cli.main(["compare", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def test_tables(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = compare(capsys, "base", "three=deep", "--study", "depth")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "depth"
    assert "│ three │ dspark │ 3 │ 3 │ vanilla 128 │ 16,384 │ - │" in lines
    assert "training on Example GPU" in lines
    assert "│ three │ 6.7 │ 400 │ 4,000 │ 1,000 │ drafter.num_layers=3 │" in lines
    assert "│ base │ 1.800 │ 0.50 0.40 0.30 │" in lines
    assert "teacher-forced" in out


def test_several_devices_and_other_answers(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = compare(capsys, "base", "[odd]")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "training on Example GPU and a CPU" in lines
    row = "│ [odd] │ a CPU │ 6.7 │ 400 │ 4,000 │ 1,000 │ data.seed=1 │"
    assert row in lines
    assert err == (
        "dspark: warning: [odd] was measured on other held-out answers than base (data.seed "
        "differ): their held-out figures do not compare\n"
    )


def test_the_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = runs.parent / "results" / "runs.json"
    code, _, _ = compare(capsys, runs / "base", "deep/drafter", "--json", place)
    assert code == 0
    text = place.read_text()
    found = json.loads(text)
    assert found["schema"] == "dspark.runs/1"
    assert found["study"] is None
    assert [row["name"] for row in found["rows"]] == ["base", "deep"]
    assert found["rows"][1]["differs"] == {"drafter.num_layers": 3}
    assert found["provenance"]["command"] == "dspark compare"
    assert list(found["provenance"]["inputs"]) == [
        "base/drafter/provenance.json",
        "base/train_log.jsonl",
        "deep/provenance.json",
        "deep/train_log.jsonl",
    ]
    assert str(runs.parent) not in text


def test_refusals(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "fresh", held_out=None, log=[])
    write_run(runs / "torn")
    (runs / "torn" / "drafter" / "provenance.json").write_text('{"config"')
    (runs / "empty").mkdir()
    place = runs / "out.json"
    for argv, words in (
        (["base", "nowhere"], "there is no run nowhere"),
        (["base", "empty"], "empty is no training run (found: no provenance.json"),
        (["base", "torn"], "torn/drafter/provenance.json is damaged: not valid JSON"),
        (["base", "fresh"], "fresh/drafter/provenance.json tells of no held-out measure"),
        (["base", "base"], "two runs have the same name (found: base)"),
        (["base", "--json", str(runs)], "cannot write"),
    ):
        code, out, err = compare(capsys, "--json", place, *argv)
        assert (code, out) == (2, "")
        assert err.startswith("dspark: error: ")
        assert err.count("\n") == 1
        assert words in err
    assert not place.exists()
    code, _, err = compare(capsys)
    assert code == 2
    assert "RUN" in err


def test_help_says_what_the_figures_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = compare(capsys, "--help")
    assert code == 0
    assert "teacher-forced" in out
    assert "nothing is evaluated" in " ".join(out.split())
