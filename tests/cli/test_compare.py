"""`dspark compare` on the command line: tables, file, warnings, refusals in one line."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from dspark.data.responses import load_responses, split_held_out
from fakes import write_jsonl
from run_folders import write_run
from tiny import tiny_drafter, tiny_home


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


# ---- --rounds -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tiny_home(tmp_path_factory.mktemp("home"), count=24)
    tiny_drafter(home, steps=6)
    return home


def rounds(
    capsys: pytest.CaptureFixture[str], home: Path, *argv: str | Path
) -> tuple[int, str, str]:
    models = ("--target", home / "target", "--dtype", "float32")
    return compare(capsys, "--rounds", *argv, *models)


def test_rounds_of_held_out_answers(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    file, answers = tmp_path / "rounds.json", home / "answers.jsonl"
    names = (f"a={home / 'run'}", f"b={home / 'run' / 'drafter'}")
    code, out, err = rounds(capsys, home, *names, "--data", answers, "--json", file)
    assert code == 0
    assert "held-out answers" in out
    assert "drawn at temperature 1: at 0" in err
    assert "hardly the target's own" not in err
    found = read_artifact(file, "dspark.rounds/1")
    recipe = json.loads((home / "run" / "drafter" / "provenance.json").read_text())["config"]
    held = split_held_out(load_responses([answers]), recipe["data"]["held_out_share"], 0)[1]
    assert sorted(found["per_completion"]["key"]) == sorted(a.key for a in held)
    assert [(row["drafter"], row["temperature"]) for row in found["rows"]] == [
        ("a", 0.0),
        ("b", 0.0),
        ("a", 1.0),
        ("b", 1.0),
    ]
    assert found["rows"][1]["gain"] == found["rows"][3]["gain"] == 0  # they are the same drafter
    assert all(1 <= row["tokens_per_round"] <= 5 for row in found["rows"])
    assert not list(tmp_path.glob("*.answers.jsonl"))

    few = rounds(capsys, home, names[0], "--data", answers, "--limit", "2", "--temperature", "1")
    assert few[0] == 0
    assert "2 held-out answers" in few[1]
    assert not few[2].strip()


def test_rounds_of_random_tokens_are_said_to_be_no_answers(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    rows = [
        {
            "id": f"r{i}",
            "domain": "math",
            "temperature": 1.0,
            "prompt_ids": [1, 2, 3],
            "response_ids": [rng.randrange(3, 150) for _ in range(60)],
            "finished": True,
        }
        for i in range(4)
    ]
    write_jsonl(tmp_path / "random.jsonl", rows)
    data = ("--data", tmp_path / "random.jsonl", "--whole")
    code, _, err = rounds(capsys, home, home / "run", *data)
    assert code == 0
    assert "4 of 4 answers are hardly the target's own (r0#0, r1#0, r2#0, …)" in err


def test_refusals_of_rounds_in_one_line(
    home: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "run" / "drafter", tmp_path / "silent")
    (tmp_path / "silent" / "provenance.json").unlink()
    shutil.copytree(home / "run" / "drafter", tmp_path / "other")
    provenance = tmp_path / "other" / "provenance.json"
    changed = json.loads(provenance.read_text())
    changed["config"]["data"]["seed"] = 7
    provenance.write_text(json.dumps(changed))
    mine, answers = home / "run", ("--data", home / "answers.jsonl")
    for argv, words in (
        ((mine,), "--rounds needs answers"),
        ((mine, mine, *answers), "two drafters have the same name"),
        ((mine, tmp_path / "silent", *answers), "does not say which answers its training held out"),
        ((mine, tmp_path / "other", *answers), "other held out other answers than run"),
        ((mine, *answers, "--verification", "both"), "Unknown verification (found: both"),
        (("nowhere", *answers), "There is no drafter nowhere"),
        ((mine, "--data", "nowhere.jsonl"), "nowhere.jsonl"),
    ):
        code, out, err = rounds(capsys, home, *argv)
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
    code, _, err = compare(capsys, "base", "--limit", "3")
    assert code == 2
    assert "--limit is for counting rounds" in err
