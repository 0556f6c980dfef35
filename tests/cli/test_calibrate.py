"""`dspark calibrate` on a tiny target: table, figures, resuming, and refusals in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dspark.artifacts import read_artifact, sha256_file
from dspark.cli import main as cli
from dspark.drafters.checkpoint import save_drafter
from dspark.tables.calibration import CalibrationTable
from dspark.targets.target import load_target
from fakes import tiny_target_folder, write_jsonl
from scripted import random_drafter

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    target = load_target(tiny_target_folder(home / "target"), "float32")
    save_drafter(random_drafter(target, block_size=3), home / "drafter")
    save_drafter(random_drafter(target, confidence_head=False), home / "silent")
    rows = [{"id": f"p{i}", "prompt": f"secret {i}"} for i in range(24)]
    write_jsonl(home / "prompts.jsonl", rows)
    write_jsonl(home / "answers.jsonl", rows[:4])
    return home


@pytest.fixture
def drafter(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "drafter", tmp_path / "drafter"))


@pytest.fixture
def run(home: Path, drafter: Path, tmp_cache: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def calibrate(*argv: str) -> tuple[int, str, str]:
        line = ["calibrate", "--target", str(home / "target"), *argv]
        for option, value in (
            ("--data", str(home / "prompts.jsonl")),
            ("--drafter", str(drafter)),
            ("--dtype", "float32"),
            ("--max-new-tokens", "8"),
            ("--rounds", "30"),
        ):
            line += [] if option in argv else [option, value]
        code = cli.main(line)
        out, err = capfd.readouterr()
        return code, out, err

    return calibrate


def test_table_and_figures(
    run: Run, home: Path, drafter: Path, tmp_path: Path, tmp_cache: Path
) -> None:
    file = tmp_path / "r" / "check.json"
    code, out, err = run("--exclude", str(home / "answers.jsonl"), "--json", str(file))
    assert code == 0
    assert "warning: only " in err
    result = read_artifact(file, "dspark.calibration_check/1")
    assert result["rounds"] >= 30
    assert [row["k"] for row in result["positions"]] == [1, 2, 3]
    assert f"{result['ece_after_mean']:.2%}" in out
    assert result["provenance"]["seeds"] == {"seed": 0}
    assert len(result["provenance"]["inputs"]) == 3

    sha = sha256_file(drafter / "model.safetensors")
    path = drafter / "calibration.json"
    first = CalibrationTable.load(path, sha256=sha)
    assert (first.kind, first.block_size, first.target) == ("dspark", 3, result["target"])
    entry = first.entry(1.0)
    assert entry.rounds == result["fit_rounds"]
    assert entry.metrics["ece_after_mean"] == result["ece_after_mean"]
    assert list(entry.temperatures) == [row["temperature"] for row in result["positions"]]
    assert not list((tmp_cache / "calibration").glob("*"))  # what a resumed run would read

    # Judging the table on the same command's prompts gives the same figures and no new table.
    before = path.read_bytes()
    exclude = ("--exclude", str(home / "answers.jsonl"))
    code, out, _ = run(*exclude, "--check-only", "--json", str(tmp_path / "again.json"))
    again = read_artifact(tmp_path / "again.json", "dspark.calibration_check/1")
    assert (code, again["positions"]) == (0, result["positions"])
    assert path.read_bytes() == before
    assert "secret" not in path.read_text() + file.read_text() + out

    # So does the other rule of verification, whose rounds are others.
    other = tmp_path / "token.json"
    assert run(*exclude, "--verification", "token", "--json", str(other))[0] == 0
    both = CalibrationTable.load(path, sha256=sha)
    assert both.entry(1.0) == entry
    assert both.entry(1.0, verification="token").verification == "token"
    told = [read_artifact(at, "dspark.calibration_check/1") for at in (file, other)]
    assert [check["verification"] for check in told] == ["block", "token"]
    path.write_bytes(before)

    # Another way of sampling adds an entry and leaves the first.
    assert run("--temperature", "0.5", "--top-k", "20")[0] == 0
    two = CalibrationTable.load(path, sha256=sha)
    assert two.entry(1.0) == entry
    assert two.entry(0.5, 1.0, 20).temperatures != ()
    code, _, err = run("--check-only", "--temperature", "0")
    assert code == 2
    assert "not calibrated for temperature 0" in err
    ways = ("temperature 0.5, top_p 1, top_k 20", "temperature 1, top_p 1, top_k 0")
    assert "; ".join(f"{way}, verification block" for way in ways) in err


def test_an_interrupted_run_goes_on(
    run: Run, drafter: Path, tmp_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspark.cli import calibrate
    from dspark.engine.engine import Engine

    steps = []

    def stop(self: object, progress: object) -> None:
        steps.append(progress)
        if len(steps) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(calibrate._Bar, "show", stop)
    code, _, err = run("--slots", "2")
    assert code == 130
    assert "run again to resume" in err
    assert not (drafter / "calibration.json").exists()
    [part] = (tmp_cache / "calibration").iterdir()
    kept = [json.loads(line) for line in part.read_text().splitlines()]
    assert kept
    assert "secret" not in part.read_text()

    submitted: list[object] = []
    submit = Engine.submit
    monkeypatch.setattr(
        Engine, "submit", lambda self, *a, **b: submitted.append(a) or submit(self, *a, **b)
    )
    assert run("--slots", "2")[0] == 0
    resumed = json.loads((drafter / "calibration.json").read_text())["entries"]
    again = len(submitted)
    assert run("--slots", "2")[0] == 0
    assert len(submitted) - again == again + len(kept)  # the finished answers were not made anew
    assert json.loads((drafter / "calibration.json").read_text())["entries"] == resumed
    assert not part.exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--check-only"], "no calibration table to check"),
        (["--drafter", "none"], "nothing to calibrate without a drafter"),
        (["--drafter", "nowhere"], "There is no drafter nowhere"),
        (["--drafter", "{home}"], "Cannot read the drafter in"),
        (["--drafter", "{home}/silent"], "The drafter has no confidence head"),
        (["--exclude", "{home}/prompts.jsonl"], "no prompt is left to collect rounds with"),
        (["--data", "missing.jsonl"], "data file 'missing.jsonl' does not exist"),
        (["--data", "{home}/drafter/config.json"], "config.json:1 is not JSON"),
        (["--limit", "1"], "There are no rounds to calibrate with"),
        (["--check-share", "1"], "--check-share leaves nothing to fit on"),
        (["--check-share", "0"], "--check-share leaves nothing"),
        (["--temperature", "-1"], "temperature is out of range"),
        (["--dtype", "int3"], "Unknown dtype"),
        (["--json", "{home}"], "cannot write"),
    ],
)
def test_refusals(run: Run, home: Path, argv: list[str], words: str) -> None:
    code, out, err = run(*(word.format(home=home) for word in argv))
    lines = [line for line in err.splitlines() if line.startswith("dspark: ")]
    assert (code, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("dspark: error: ")
    assert words in lines[0]


def test_bad_tables_and_places_are_named_before_the_work(
    run: Run, drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspark.cli.calibrate.load_models", None)  # would raise if called
    table = drafter / "calibration.json"
    CalibrationTable("ab" * 32, "dspark", 3, "t").save(table)
    for argv in ((), ("--check-only",)):
        code, _, err = run(*argv)
        assert code == 2
        assert "was made for another drafter (found: table abababababab, drafter " in err
        assert err.count("\n") == 1
    table.write_text("{")
    code, _, err = run()
    assert code == 2
    assert "calibration.json is damaged" in err
    table.unlink()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != drafter)
    code, _, err = run()
    assert code == 2
    assert f"cannot write {table}" in err
