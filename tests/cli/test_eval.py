"""`dspark eval` on a tiny target: tables, files, resuming, and every bad input in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.artifacts import read_artifact, sha256_file
from dspark.cli import main as cli
from dspark.drafters.checkpoint import load_drafter, save_drafter
from dspark.engine.tables import cost_key, default_path
from dspark.evaluation import evaluate
from dspark.tables.cost import CostTable
from dspark.targets.target import load_target
from fakes import tiny_target_folder, write_jsonl
from scripted import random_drafter

Run = Callable[..., tuple[int, str, str]]
TEXTS = ("add the rain", "sort three birds", "name a river")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and three drafters: a, b, and one without a confidence head."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    target = load_target(tiny_target_folder(home / "target"), "float32")
    save_drafter(random_drafter(target, 3), home / "a")
    training = {"provenance.json": json.dumps({"training": {"anchors": 7}})}
    save_drafter(random_drafter(target, 4, seed=1), home / "b", extra_files=training)
    save_drafter(random_drafter(target, 3, confidence_head=False), home / "blind")
    return home


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"id": f"p{i}", "domain": "chat", "prompt": text} for i, text in enumerate(TEXTS)]
    return write_jsonl(tmp_path / "mine.v1.jsonl", rows)


@pytest.fixture
def run(home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def judge(*argv: str) -> tuple[int, str, str]:
        line = ["eval", *argv, "--target", str(home / "target")]
        for option, value in (
            ("--drafter", str(home / "a")),
            ("--dtype", "float32"),
            ("--max-new-tokens", "8"),
        ):
            line += [] if option in argv else [option, value]
        code = cli.main(line)
        out, err = capfd.readouterr()
        return code, out, err

    return judge


def named(home: Path, *names: str) -> list[str]:
    return [word for name in names for word in ("--drafter", f"{name}={home / name}")]


def test_tables_and_files(run: Run, home: Path, prompts: Path, tmp_path: Path) -> None:
    more = write_jsonl(tmp_path / "more.jsonl", [{"id": "m", "turns": ["count one line", "x"]}])
    file, trace = tmp_path / "r" / "out.json", tmp_path / "r" / "trace.jsonl"
    code, out, _ = run(
        *("--data", str(prompts), "--data", str(more), *named(home, "a", "b")),
        *("--temperature", "0", "--temperature", "1", "--threshold", "0.5"),
        *("--limit", "2", "--study", "head", "--json", str(file), "--trace", str(trace)),
    )
    assert code == 0
    result = read_artifact(file, "dspark.eval/1")
    assert (result["study"], result["limit"], result["slots"]) == ("head", 2, 16)
    assert len(result["rows"]) == 2 * 2 * 2 * 2
    first = result["rows"][0]
    assert (first["drafter"], first["dataset"], first["domain"]) == ("a", "mine.v1", "chat")
    assert first["per_prompt"]["ids"] == ["p0", "p1"]
    policies = {row["policy"] for row in result["rows"]}
    assert policies == {"fixed:3", "fixed:4", "threshold:0.5"}
    assert {row["drafter"]: row["training"] for row in result["rows"]} == {
        "a": None,
        "b": {"anchors": 7},
    }
    assert len(result["macro"]) == 2 * 2 * 2
    assert all(set(found["gains"]) == {"a", "b"} - {found["drafter"]} for found in result["macro"])
    assert {"mine.v1.jsonl", "more.jsonl"} <= result["provenance"]["inputs"].keys()
    for row in result["rows"]:
        weights = row["sha256"]["model.safetensors"]
        assert weights == sha256_file(home / row["drafter"] / "model.safetensors")
    assert not (tmp_path / "r" / "out.json.cells.jsonl").exists()
    header, *records = map(json.loads, trace.read_text().splitlines())
    assert header["schema"] == "dspark.trace/1"
    assert header["provenance"]["command"] == "dspark eval"
    assert len(records) == sum(row["rounds"] for row in result["rows"])
    for words in ("mine.v1", "threshold:0.5", "accepted_length", "over b", "mean over domains"):
        assert words in out
    low, high = first["accepted_length_ci"]
    assert f"{first['accepted_length']:.2f} [{low:.2f}, {high:.2f}]" in out
    written = file.read_text() + trace.read_text()
    assert not any(text in written for text in (*TEXTS, "count one line"))


def test_names_and_skipped_prompts(run: Run, prompts: Path, tmp_path: Path) -> None:
    rows = [{"id": "long", "prompt": "name a river " * 80}, {"id": "short", "prompt": "add"}]
    long = write_jsonl(tmp_path / "long.jsonl.gz", rows)
    file = tmp_path / "out.json"
    code, _, err = run("--data", str(long), "--json", str(file))
    assert code == 0
    assert "dspark: long: 1 prompts skipped" in err
    (row,) = read_artifact(file, "dspark.eval/1")["rows"]
    assert (row["drafter"], row["dataset"], row["domain"]) == ("dspark", "long", "unknown")
    assert (row["skipped"], row["prompts"]) == (1, 1)


def test_ctrl_c_keeps_finished_cells(
    run: Run, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out.json"
    argv = ["--data", str(prompts), "--temperature", "0", "--temperature", "1", "--json", str(file)]
    answer, answered = evaluate.answer, list[Any]()

    def interrupted(*args: Any) -> Any:
        if len(answered) == 1:
            raise KeyboardInterrupt
        answered.append(args[1].key)
        return answer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "answer", interrupted)
        code, _, err = run(*argv)
    assert code == 130
    assert "finished cells are kept; run again to resume" in err
    assert not file.exists()
    monkeypatch.setattr(evaluate, "answer", lambda *a: answered.append(a[1].key) or answer(*a))
    assert run(*argv)[0] == 0
    assert [key[2] for key in answered] == [0.0, 1.0]
    assert len(read_artifact(file, "dspark.eval/1")["rows"]) == 2
    assert [p.name for p in tmp_path.glob("*.cells.jsonl")] == []


def test_adaptive_policies_go_by_the_tables_of_each_drafter(
    run: Run, home: Path, prompts: Path, tmp_path: Path, tmp_cache: Path
) -> None:
    argv = ["--data", str(prompts), *named(home, "a", "b"), "--policy", "causal"]
    code, _, err = run(*argv)
    assert code == 2
    assert "no cost table" in err
    assert "dspark profile" in err
    target = load_target(home / "target", "float32")
    for name, draft_s in (("a", 1e-9), ("b", 10.0)):  # drafting with b never pays
        key = cost_key(target, load_drafter(home / name, target))
        verify = tuple((n, 0.01 + 1e-6 * n) for n in (1, 64))
        CostTable(key, verify, ((1, draft_s), (16, 1.01 * draft_s)), 8).save(default_path(key))
    file = tmp_path / "out.json"
    code, _, err = run(*argv, "--json", str(file))
    assert code == 0, err
    rows = {row["drafter"]: row for row in read_artifact(file, "dspark.eval/1")["rows"]}
    assert {row["policy"] for row in rows.values()} == {"causal"}
    assert rows["a"]["verified_tokens"] > 0
    assert rows["b"]["verified_tokens"] == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--drafter", "none"], "nothing to judge without a drafter"),
        (["--drafter", "x=none"], "nothing to judge without a drafter"),
        (["--drafter", "=somewhere"], "name is empty"),
        (["--drafter", "nowhere"], "There is no drafter nowhere"),
        (["--data", "missing.jsonl"], "data file 'missing.jsonl' does not exist"),
        (["--temperature", "-1"], "temperature is out of range"),
        (["--top-p", "0"], "top_p is out of range"),
        (["--threshold", "2"], "--threshold"),
        (["--limit", "0"], "--limit"),
        (["--trace", "trace.jsonl.gz"], "cannot be appended to a compressed file"),
        (["--json", "."], "cannot write"),
    ],
)
def test_refusals_before_a_model_is_loaded(
    run: Run, prompts: Path, argv: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspark.cli.eval.load_models", None)  # would raise if it came to that
    code, out, err = run("--data", str(prompts), *argv)
    assert (code, out) == (2, "")
    assert err.startswith("dspark: error: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_damaged_line_is_named_before_a_model_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspark.cli.eval.load_models", None)
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "fine"}\n{"question": "no text field"}\n')
    code, _, err = run("--data", str(file))
    assert code == 2
    assert f"{file}:2 has no prompt" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--policy", "often"], "Unknown policy"),
        (["--policy", "fixed:9"], "does not fit the drafter"),
        (["blind", "--threshold", "0.5"], "drafter blind gives none"),
        (["a", "a"], "Two drafters have the same name"),
        (["--data"], "Two data files have the same name"),
    ],
)
def test_refusals(run: Run, home: Path, prompts: Path, argv: list[str], words: str) -> None:
    drafters = named(home, *(word for word in argv if word in ("a", "blind")))
    rest = [word for word in argv if word not in ("a", "blind")]
    rest = ["--data", str(prompts)] if rest == ["--data"] else rest
    code, out, err = run("--data", str(prompts), *drafters, *rest)
    assert (code, out) == (2, "")
    assert "dspark: error: " in err
    assert words in " ".join(err.split())
