"""The whole spine on a tiny model folder, through the command line: regenerate, train, generate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dspark.artifacts import read_artifact, read_jsonl
from dspark.cli import main as cli
from fakes import tiny_target_folder, write_jsonl

RECIPE = """
target = "{target}"
out = "{out}"

[data]
responses = ["{answers}"]
held_out_share = 0.1

[drafter]
block_size = 5
num_layers = 1
markov_rank = 16
draft_vocab_size = 100
intermediate_size = 96

[optim]
lr = 5e-3
warmup_share = 0

[run]
steps = 60
anchors_per_sequence = 16
dtype = "float32"
"""


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_regenerate_train_generate(
    tmp_path: Path, family: str, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    target = tiny_target_folder(tmp_path / "target", family, temper=5.0)
    topics = ("the rain", "a river", "three birds", "this list")
    rows = [
        {
            "id": f"p{n}",
            "domain": ("math", "chat")[n % 2],
            "prompt": f"tell me of {topics[n % 4]} {n}",
        }
        for n in range(48)
    ]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows)
    answers, out = tmp_path / "answers.jsonl", tmp_path / "out"
    config = tmp_path / "recipe.toml"
    config.write_text(RECIPE.format(target=target, out=out, answers=answers))

    def dspark(*argv: str) -> str:
        code = cli.main(list(argv))
        stdout, stderr = capfd.readouterr()
        assert code == 0, stderr
        return stdout

    common = ("--target", str(target), "--dtype", "float32")
    regenerate = ("regenerate", "--prompts", str(prompts), "--out", str(answers), *common)
    regenerate += ("--max-new-tokens", "40", "--max-len", "200", "--slots", "12")
    regenerate += ("--temperatures", "0:0.5,1:0.5", "--suffix-share", "0")
    assert "48 answers" in dspark(*regenerate)
    assert {row["id"] for row in read_jsonl(answers)} == {row["id"] for row in rows}
    before = answers.read_bytes()
    dspark(*regenerate)  # all is done already
    assert answers.read_bytes() == before

    measured = json.loads(dspark("train", "--config", str(config), "--json"))
    assert measured["accepted_length"] > 1.4

    drafter = str(out / "drafter")
    saved = 0.0
    for prompt in ("tell me of the rain 100", "name three birds", "what is a river?"):
        generate = ("generate", prompt, "--json", "--max-new-tokens", "60", *common)
        plain = json.loads(dspark(*generate, "--drafter", "none"))
        drafted = json.loads(dspark(*generate, "--drafter", drafter, "--policy", "fixed:5"))
        assert drafted["token_ids"] == plain["token_ids"]
        assert drafted["text"] == plain["text"]
        saved += drafted["accepted_length"] - 1
    assert saved / 3 > 0.3  # it drafts what the target says, not noise

    result = tmp_path / "demo.json"
    demo = ("demo", "--limit", "3", "--quiet", "--max-new-tokens", "24", "--json", str(result))
    dspark(*demo, "--drafter", drafter, *common)
    assert read_artifact(result, "dspark.demo/1")["identical_texts"] == 1.0
