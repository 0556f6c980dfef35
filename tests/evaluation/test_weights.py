"""Weights of eight bits beside the full ones: figures, the verb, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dspark import native
from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from dspark.data.responses import load_responses
from dspark.drafters.checkpoint import save_drafter
from dspark.evaluation import weights
from dspark.targets.target import load_target
from fakes import write_jsonl
from scripted import random_drafter
from tiny import tiny_home

pytestmark = pytest.mark.skipif(native.usable() == (native.TORCH,), reason="no kernels here")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tiny_home(tmp_path_factory.mktemp("home"), count=6)
    save_drafter(random_drafter(load_target(home / "target", "float32"), 4), home / "drafter")
    return home


def test_figures(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "ROWS", 7)  # answers are longer
    full, small = weights.load_both(home / "target", "float32", "cpu")
    answers = load_responses([home / "answers.jsonl"], 256)
    found = weights.compare(full, small, answers)
    assert found["tokens"] == sum(len(answer.response_ids) for answer in answers)
    assert 0.9 < found["int8"]["perplexity"] / found["same"]["perplexity"] < 1.1
    assert 0.8 < found["same_choice"] <= 1
    assert 0 < found["mean_kl"] < 0.05
    assert found["int8"]["weights_mib"] < 0.4 * found["same"]["weights_mib"]
    again = weights.compare(full, full, answers)
    assert (again["same_choice"], again["mean_kl"]) == (1, 0)


def test_perplexity_is_of_the_answer_s_tokens(home: Path) -> None:
    full, small = weights.load_both(home / "target", "float32", "cpu")
    (answer, *_) = load_responses([home / "answers.jsonl"])
    ids = [*answer.prompt_ids.tolist(), *answer.response_ids.tolist()]
    with torch.inference_mode():
        logits = full.target.logits(full.target.states([ids], ())[0]).log_softmax(-1)
    first = len(answer.prompt_ids)
    each = [float(logits[at - 1, ids[at]]) for at in range(first, len(ids))]
    expected = float(torch.tensor(each).mean().neg().exp())
    found = weights.compare(full, small, [answer])
    assert found["same"]["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_the_verb(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "weights.json"
    line = ["bench", "weights", "--target", str(home / "target"), "--dtype", "float32"]
    line += ["--data", str(home / "answers.jsonl"), "--limit", "3", "--json", str(file)]
    line += ["--drafter", str(home / "drafter"), "--policy", "fixed:4", "--prompts", "2"]
    assert cli.main([*line, "--max-new-tokens", "6"]) == 0
    assert "perplexity" in capfd.readouterr().out
    found = read_artifact(file, weights.SCHEMA)
    assert (found["answers"], found["dtype"]) == (3, "float32")
    assert [(row["peer"], row["policy"]) for row in found["rows"]] == [
        (kind, policy) for kind in ("same", "int8") for policy in ("off", "fixed:4")
    ]
    assert found["rows"][3]["accepted_length"] >= 1
    assert str(home) not in file.read_text()


def test_answers_of_another_target(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "a", "domain": "chat", "temperature": 0.0, "finished": True}
    file = write_jsonl(tmp_path / "a.jsonl", [row | {"prompt_ids": [5], "response_ids": [9999]}])
    line = ["bench", "weights", "--target", str(home / "target"), "--data", str(file)]
    assert cli.main(line) == 2
    assert "belong to another target" in capfd.readouterr().err
