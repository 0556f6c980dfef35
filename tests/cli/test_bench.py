"""`dspark bench`: the figures file, and refusals in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark import native
from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from dspark.cli.bench_load import never_worse_lines
from dspark.evaluation import start
from fakes import write_jsonl
from tiny import tiny_drafter, tiny_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tiny_home(tmp_path_factory.mktemp("home"), count=16)
    tiny_drafter(home)
    return home


def test_head(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r" / "head.json"
    line = ["bench", "head", "--target", str(home / "target"), "--rounds", "5"]
    line += ["--drafter", str(home / "run" / "drafter"), "--dtype", "float32"]
    rows = [{"id": str(n), "prompt": f"count {n}"} for n in range(4)]
    line += ["--data", str(write_jsonl(tmp_path / "p.jsonl", rows))]
    assert cli.main([*line, "--json", str(file)]) == 0
    assert "vanilla" in capfd.readouterr().out
    found = read_artifact(file, "dspark.head_cost/1")
    (row,) = found["rows"]
    assert row["drafter"] == "drafter"
    assert row["rounds"] >= 5
    assert str(home) not in file.read_text()


def test_load(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r" / "load.json"
    line = ["bench", "load", "--target", str(home / "target"), "--dtype", "float32"]
    line += ["--drafter", str(home / "run" / "drafter"), "--users", "1,2", "--rates", "50"]
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "count 3"}])
    line += ["--data", str(prompts), "--seconds", "0.1", "--slice", "0.05", "--max-new-tokens", "6"]
    assert cli.main([*line, "--policies", "off,fixed:2", "--json", str(file)]) == 0
    assert "2 users" in capfd.readouterr().out
    found = read_artifact(file, "dspark.load/1")
    assert (found["drafter"], found["kind"]) == ("drafter", "dspark")
    rows = found["rows"]
    assert [(r["users"], r["policy"]) for r in rows] == [
        (users, policy) for users in (1, 2, 0) for policy in ("off", "fixed:2")
    ]
    assert cli.main([*line, "--policies", "fixd:2"]) == 2
    assert "Unknown policy" in capfd.readouterr().err


def test_load_of_two_drafters(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "load.json", home / "run" / "drafter"
    line = ["bench", "load", "--target", str(home / "target"), "--dtype", "float32"]
    line += ["--drafter", str(folder), "--users", "1,2", "--seconds", "0.1", "--slice", "0.05"]
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "count 3"}])
    line += ["--data", str(prompts), "--max-new-tokens", "6", "--policies", "off,fixed:2"]
    other = shutil.copytree(folder, tmp_path / "other")
    assert cli.main([*line, "--against", f"{other}=fixed:1", "--json", str(file)]) == 0
    assert "other" in capfd.readouterr().out
    rows = read_artifact(file, "dspark.load/1")["rows"]
    assert [(r["users"], r["drafter"], r["policy"], r["kind"]) for r in rows] == [
        (users, *way, "dspark")
        for users in (1, 2)
        for way in (("drafter", "off"), ("drafter", "fixed:2"), ("other", "fixed:1"))
    ]
    for wrong in ("fixed:1", "=fixed:1", "none=fixed:1"):
        assert cli.main([*line, "--against", wrong]) == 2
        assert "takes a drafter and a policy" in capfd.readouterr().err
    assert cli.main([*line, "--against", f"{other}=fixed:99"]) == 2
    assert "does not fit the drafter" in capfd.readouterr().err


def test_load_says_how_adaptive_policies_did() -> None:
    """One line a level and policy, where fixed ones ran beside it."""

    def row(policy: str, users: int, speed: int, drafter: str = "dspark") -> dict[str, Any]:
        slices = [{"tokens": speed, "seconds": 1.0}] * 6
        load = {"users": users, "rate": 0.5}
        return {"drafter": drafter, "policy": policy, **load, "slices": slices}

    rows = [row("off", 1, 100), row("fixed:2", 1, 200), row("causal", 1, 196)]
    rows += [row("off", 0, 100), row("pipelined", 0, 90), row("causal", 4, 90)]
    rows += [row("fixed:2", 1, 900, "mtp"), row("causal", 1, 90, "mtp")]  # another drafter's
    assert never_worse_lines(rows) == [
        "1 users: causal 0.980 (0.980 to 0.980) of the best fixed choice, fixed:2",
        "0.5/s: pipelined 0.900 (0.900 to 0.900) of the best fixed choice, off; below 0.98",
    ]


def test_peers(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r" / "peers.json"
    folder = home / "run" / "drafter"
    rows = [{"id": n, "prompt": f"count {n}"} for n in "abc"]
    line = ["bench", "peers", "--target", str(home / "target"), "--dtype", "float32"]
    line += ["--data", str(write_jsonl(tmp_path / "p.jsonl", rows)), "--max-new-tokens", "6"]
    line += ["--drafter", str(folder), "--drafter", f"one={folder}", "--threads", "1"]
    line += ["--policy", "fixed:2", "--policy", "fixed:1"]
    assert cli.main([*line, "--json", str(file)]) == 0
    out = capfd.readouterr().out
    found = read_artifact(file, "dspark.peers/1")
    assert (found["target"], found["threads"], found["max_new_tokens"]) == ("target", 1, 6)
    assert found["llama"] is None
    names = [(row["peer"], row["drafter"], row["policy"]) for row in found["rows"]]
    assert names == [
        ("dspark", None, "off"),
        ("dspark", "dspark", "fixed:2"),
        ("dspark", "one", "fixed:1"),
        ("transformers", None, None),
        ("transformers", "prompt lookup", None),
        ("llama-cpp-python", None, None),
        ("llama-server", None, None),
    ]
    there, gone = found["rows"][:5], found["rows"][5:]
    assert all(row["equal_texts"] == 1.0 and row["prompts"] == 2 for row in there)
    assert all(row["missing"] and row["tokens_per_s"] is None for row in gone)
    assert [row["label"] for row in there][1] == "dspark + dspark fixed:2"
    assert "missing: llama-server: no server was given" in out
    assert str(home) not in file.read_text()


def test_peers_at_kernel_levels(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": n, "prompt": f"count {n}"} for n in "ab"]
    levels = dict.fromkeys([native.TORCH, native.usable()[-1]])
    line = ["bench", "peers", "--target", str(home / "target"), "--dtype", "float32"]
    line += ["--data", str(write_jsonl(tmp_path / "p.jsonl", rows)), "--max-new-tokens", "4"]
    line += ["--drafter", str(home / "run" / "drafter"), "--threads", "1"]
    before = native.current()
    file = tmp_path / "peers.json"
    assert cli.main([*line, "--levels", ",".join(levels), "--json", str(file)]) == 0
    rows = read_artifact(file, "dspark.peers/1")["rows"]
    names = [row["peer"] for row in rows if row["peer"].startswith("dspark at")]
    assert names == [f"dspark at {level}" for level in levels for _ in range(2)]
    assert all(row["equal_texts"] == 1.0 for row in rows if row["peer"] in names)
    assert native.current() == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["peers", "--levels", "avx3"], "no such kernel level here"),
        (["peers", "--limit", "1"], "--limit"),
        (["peers", "--drafter", "none"], "without a drafter"),
        (["peers", "--policy", "off", "--policy", "off"], "2 for 1 drafters"),
        (["peers", "--llama-server", "localhost"], "address is not valid"),
        (["peers", "--gguf", "nowhere.gguf"], "nowhere.gguf as a GGUF file"),
        (["peers", "--policy", "fixd:1"], "Unknown policy"),
        (["peers", "--data", "nowhere.jsonl"], "does not exist"),
    ],
)
def test_mistakes_of_peers(
    home: Path, argv: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["bench", *argv, "--target", str(home / "target"), "--dtype", "float32"]
    if "--drafter" not in argv:
        line += ["--drafter", str(home / "run" / "drafter")]
    if "--limit" not in argv:
        line += ["--limit", "2"]
    assert cli.main(line) == 2
    err = capfd.readouterr().err
    assert words in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["head", "--drafter", "none"], "without a drafter"),
        (["head", "--drafter", "nowhere"], "no drafter nowhere"),
        (["head", "--rounds", "1"], "--rounds"),
        (["heads"], "heads"),
        (["load", "--users", "0"], "whole numbers above 0"),
        (["load", "--users", "1,x"], "whole numbers above 0"),
        (["load", "--users", "", "--rates", ""], "nothing to measure"),
        (["load", "--rates", "-1"], "numbers above 0"),
    ],
)
def test_mistakes(argv: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *argv]) == 2
    err = capfd.readouterr().err
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_start(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(start, "once", lambda way: asked.append(way.command) or 1.5)
    file = tmp_path / "start.json"
    line = ["bench", "start", "--target", str(home / "target"), "--dtype", "float32"]
    line += ["--drafter", str(home / "run" / "drafter"), "--times", "2", "--json", str(file)]
    assert cli.main(line) == 0
    found = read_artifact(file, start.SCHEMA)
    assert [row["way"] for row in found["rows"]] == ["generate", "serve", "doctor", "torch"]
    assert len(asked) == 3 * len(found["rows"])
    assert all("float32" in command for command in asked if "generate" in command)
    assert str(home) not in file.read_text()
    assert "1.50" in capfd.readouterr().out


def test_start_hears_of_wrong_models_first(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "once", lambda way: pytest.fail("a process was started"))
    for wrong in (["--target", "./nowhere"], ["--drafter", "nothing"], ["--times", "0"]):
        assert cli.main(["bench", "start", *wrong]) == 2
        assert len(capfd.readouterr().err.strip().splitlines()) == 1
