"""A run gives the same file by either way of drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspark.artifacts import read_jsonl
from dspark.data.prompts import Prompt
from dspark.errors import ConfigError
from dspark.regeneration.batches import EngineBatch, make_batch
from dspark.regeneration.plain_batch import PlainBatch
from dspark.regeneration.regenerate import RegenerationProgress, run
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder

OPTIONS: dict[str, Any] = {"max_new_tokens": 24, "slots": 5, "seed": 3}
PROMPTS = [
    Prompt(f"p{i}", [{"role": "user", "content": f"count to {i}"}], ("math", "chat")[i % 2])
    for i in range(70)
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(tiny_target_folder(tmp_path_factory.mktemp("target")), "float32")


@pytest.fixture(scope="module")
def by_engine(target: Target, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("engine") / "a.jsonl"
    run(target, PROMPTS, path, **OPTIONS, decoder="engine")
    return rows_of(path)


def rows_of(path: Path) -> dict[str, Any]:
    rows = list(read_jsonl(path))
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows), "no row twice"
    return by_id


def test_same_rows(target: Target, by_engine: dict[str, Any], tmp_path: Path) -> None:
    done = run(target, PROMPTS, tmp_path / "a.jsonl", **OPTIONS, decoder="graph")
    assert rows_of(tmp_path / "a.jsonl") == by_engine
    assert done.rows == len(by_engine) == 70
    assert done.new_tokens == done.tokens
    run(target, PROMPTS, tmp_path / "b.jsonl", **OPTIONS | {"seed": 4}, decoder="graph")
    assert rows_of(tmp_path / "b.jsonl") != by_engine


def test_long_prompts_are_skipped(target: Target, tmp_path: Path) -> None:
    long = Prompt("long", [{"role": "user", "content": "x " * 90}], "chat")
    path = tmp_path / "a.jsonl"
    done = run(target, [long, *PROMPTS[:3]], path, **OPTIONS, max_len=100, decoder="graph")
    assert (done.rows, done.skipped) == (3, 1)


def test_interrupted_and_resumed(target: Target, by_engine: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def interrupt(progress: RegenerationProgress) -> None:
        if progress.rows >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(target, PROMPTS, path, **OPTIONS, on_progress=interrupt, decoder="graph")
    assert 9 <= len(rows_of(path)) < 70
    run(target, PROMPTS, path, **OPTIONS, decoder="graph")
    assert rows_of(path) == by_engine


def test_token_limit(target: Target, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    done = run(target, PROMPTS, path, **OPTIONS, limit_tokens=200, decoder="graph")
    assert 200 <= done.tokens < 200 + (5 + 16) * 24
    assert done.rows < 70
    options = OPTIONS | {"limit_tokens": done.tokens, "decoder": "graph"}
    assert run(target, PROMPTS, path, **options).new_tokens == 0


def test_choice(target: Target, tmp_path: Path) -> None:
    assert isinstance(make_batch(target, 2, 64), EngineBatch), "on a CPU"
    assert isinstance(make_batch(target, 2, 64, "graph"), PlainBatch)
    windowed = load_target(tiny_target_folder(tmp_path, "gemma3"), "float32")
    with pytest.raises(ConfigError, match="CUDA graph"):
        make_batch(windowed, 2, 64, "graph")
    with pytest.raises(ConfigError):
        make_batch(target, 0, 64)
