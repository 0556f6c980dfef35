"""`dspark confidence` on a tiny target: the head beside the drafter, figures, refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dspark.artifacts import read_artifact, sha256_file
from dspark.cli import main as cli
from dspark.drafters.checkpoint import save_drafter
from dspark.tables.calibration import CalibrationEntry, CalibrationTable
from dspark.targets.target import load_target
from fakes import tiny_target_folder, write_jsonl
from scripted import random_drafter

Run = Callable[..., tuple[int, str, str]]
K = 3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    target = load_target(tiny_target_folder(home / "target"), "float32")
    save_drafter(random_drafter(target, block_size=K), home / "drafter")
    save_drafter(random_drafter(target, confidence_head=False), home / "silent")
    rows = [{"id": f"p{i}", "prompt": f"secret {i}"} for i in range(120)]
    write_jsonl(home / "prompts.jsonl", rows)
    write_jsonl(home / "answers.jsonl", rows[20:])
    return home


@pytest.fixture
def drafter(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "drafter", tmp_path / "drafter"))


@pytest.fixture
def run(home: Path, drafter: Path, tmp_cache: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(verb: str, *argv: str) -> tuple[int, str, str]:
        line = [verb, "--target", str(home / "target"), *argv]
        for option, value in (
            ("--data", str(home / "prompts.jsonl")),
            ("--drafter", str(drafter)),
            ("--dtype", "float32"),
            ("--max-new-tokens", "16"),
            ("--rounds", "400"),
        ):
            line += [] if option in argv else [option, value]
        code = cli.main(line)
        out, err = capfd.readouterr()
        return code, out, err

    return call


def table(drafter: Path, confidence: str = "") -> CalibrationTable:
    sha = sha256_file(drafter / "model.safetensors")
    return CalibrationTable.load(drafter / "calibration.json", sha256=sha, confidence=confidence)


def test_fit_then_calibrate(run: Run, home: Path, drafter: Path, tmp_path: Path) -> None:
    sha = sha256_file(drafter / "model.safetensors")
    entries = [CalibrationEntry(t, 1.0, 0, (1.0,) * K, (0.5,) * K) for t in (0.0, 1.0)]
    CalibrationTable(sha, "dspark", K, "t", tuple(entries)).save(drafter / "calibration.json")
    file = tmp_path / "r" / "confidence.json"
    code, out, err = run("confidence", "--only", str(home / "answers.jsonl"), "--json", str(file))
    assert code == 0, err
    result = read_artifact(file, "dspark.confidence_fit/1")
    assert result["rounds"] + result["fit_rounds"] >= 400
    assert result["prompts"] + result["fit_prompts"] <= 100  # of the answers alone
    assert f"{result['auroc_mean']:.3f}" in out
    assert "now run `dspark calibrate`" in out
    assert "secret" not in file.read_text() + out

    # The weights are what they were; what was calibrated with the head before is gone.
    assert sha256_file(drafter / "model.safetensors") == sha
    head = sha256_file(drafter / "confidence.head")
    assert table(drafter, head).entries == tuple(entries[:1])

    check = ("--rounds", "60", "--exclude", str(home / "answers.jsonl"), "--max-new-tokens", "16")
    code, _, err = run("calibrate", *check)
    assert code == 0, err
    assert table(drafter, head).entry(1.0).confidence == head
    assert table(drafter, head).entry(0.0).confidence == ""
    assert run("calibrate", "--check-only", *check)[0] == 0

    # Without the head, or with another, the table is refused.
    (drafter / "confidence.head").rename(tmp_path / "head")
    code, _, err = run("calibrate", "--check-only", *check)
    assert code == 2
    assert "made with another confidence head (temperature 1" in err
    assert f"table {head[:12]}, drafter the linear one" in err


def test_an_interrupted_run_goes_on(
    run: Run, drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspark.calibration import confidence

    fit = confidence.fit

    def stop(*args: object, **options: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(confidence, "fit", stop)
    assert run("confidence")[0] == 130
    assert not (drafter / "confidence.head").exists()
    monkeypatch.setattr(confidence, "fit", fit)
    answered = []
    monkeypatch.setattr(
        "dspark.calibration.clues.submit", lambda *given: answered.append(given) or None
    )
    assert run("confidence")[0] == 0
    assert not answered  # all rounds were there
    assert (drafter / "confidence.head").exists()


def test_what_is_refused(run: Run, home: Path, drafter: Path) -> None:
    for argv, said in (
        (("--temperature", "0"), "Greedy drafts draw nothing"),
        (("--drafter", "none"), "no head to fit without a drafter"),
        (("--drafter", str(home / "silent")), "no confidence head to start from"),
        (("--exclude", str(home / "prompts.jsonl")), "no prompt is left"),
        (("--data", str(home / "nothing.jsonl")), "nothing.jsonl"),
        (("--rounds", "20", "--max-new-tokens", "4"), "too few rounds"),
    ):
        code, _, err = run("confidence", *argv)
        assert code == 2, said
        assert said in err
        assert "Traceback" not in err
    (drafter / "confidence.head").write_bytes(b"damaged")
    code, _, err = run("confidence")
    assert code == 2
    assert "Cannot read" in err
    assert "Remove it, and fit another with `dspark confidence`" in err
