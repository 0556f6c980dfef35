"""What HTTP costs: turns of two engines, clients of their own, and the figures."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from dspark.core import SamplingParams
from dspark.drafters.drafter import Drafter
from dspark.engine.async_engine import AsyncEngine
from dspark.errors import ConfigError, EngineError
from dspark.server import bench
from dspark.server.bench import Load, Turn, TurnEngine
from dspark.targets.target import Target
from fakes import write_jsonl
from scripted import whole_blocks
from serving import soon
from tiny import tiny_drafter, tiny_home

PROMPTS = [[{"role": "user", "content": f"add {n} to the rain"}] for n in range(5)]


def engine(target: Target, drafter: Drafter | None = None) -> TurnEngine:
    return TurnEngine(target, drafter, whole_blocks(drafter), slots=3, max_len=96)


def turn(tokens: int, seconds: float = 1.0) -> Turn:
    return Turn(seconds, tokens, tokens // 2, 0.5, 0.25 * seconds)


@pytest.fixture(autouse=True)
def another_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn in which a busy machine got nothing done is taken again."""
    real = bench._turn

    async def turn(*args: Any) -> Turn:
        while True:
            found = await real(*args)
            if found.tokens:
                return found

    monkeypatch.setattr(bench, "_turn", turn)


def test_both_ways_in_turn(target: Target, drafter: Drafter) -> None:
    ways = engine(target, drafter), engine(target, drafter)
    done = []
    load = Load(users=3, max_new_tokens=8, seconds=0.4, slice_s=0.2)
    found = bench.run(*ways, PROMPTS, load, on_turn=lambda *at: done.append(at))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert found["answers"] > 0
    for way in ("bare", "served"):
        assert len(found[way]["slices"]) == 2
        assert all(part["tokens"] > 0 for part in found[way]["slices"])
        assert 1 <= found[way]["tokens_per_step"] <= 3 * 5
    assert 0 < found["client_cpu_share"] < 1.5
    assert not any(way.queue for way in ways), "all requests have ended"


def test_an_engine_stands_still_between_its_turns(target: Target) -> None:
    own = engine(target)

    async def read() -> int:
        async with AsyncEngine(own) as outer:
            stream = outer.stream([5, 6], SamplingParams(max_new_tokens=90, ignore_stop=True))
            time.sleep(0.05)
            assert own.stats.steps == 0
            own.begin()
            assert soon(lambda: own.stats.steps > 2)
            own.pause()
            before = own.stats.steps
            time.sleep(0.05)
            assert own.stats.steps == before
            own.begin()
            return len([output async for output in stream])

    assert asyncio.run(read()) == 90


def test_overhead_is_paired() -> None:
    """One slow moment of the machine in both ways changes nothing."""
    bare = [turn(100), turn(10, 0.1), turn(50), turn(100)]
    served = [turn(90), turn(9, 0.1), turn(45), turn(90)]
    found = bench.figures(bare, served)
    assert found["overhead"] == 0.1
    assert found["overhead_ci"] == [0.1, 0.1]
    assert found["client_cpu_share"] == 0.25
    assert found["bare"]["tokens_per_s"] == round(260 / 3.1, 4)
    assert found["served"]["cpu_ms_per_token"] == round(2000 / 234, 4)
    low, high = bench.figures(bare, [turn(90), turn(9, 0.1), turn(50), turn(70)])["overhead_ci"]
    assert low < 0.1 < high, "turns that differ make it unsure"
    with pytest.raises(ConfigError, match="No token came"):
        bench.figures(bare, [turn(0)] * 4)


def test_a_client_that_is_refused_ends_it(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = bench._body
    monkeypatch.setattr(bench, "_body", lambda _, *rest: plain("another", *rest))
    load = Load(users=2, max_new_tokens=4, seconds=0.2, slice_s=0.1)
    with pytest.raises(EngineError, match="404"):
        bench.run(engine(target), engine(target), PROMPTS, load)


def test_clients_that_are_gone(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.bench_clients, "__name__", "this")
    load = Load(users=2, max_new_tokens=4, seconds=0.2, slice_s=0.1)
    with pytest.raises(EngineError, match="process has ended"):
        bench.run(engine(target), engine(target), PROMPTS, load)


def test_the_verb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home = tiny_home(tmp_path, count=6)
    tiny_drafter(home, steps=1)
    file = tmp_path / "serve.json"
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "count 3"}])
    line = ["bench", "serve", "--target", str(home / "target"), "--dtype", "float32"]
    line += ["--data", str(prompts), "--seconds", "0.2", "--slice", "0.1", "--users", "2"]
    line += ["--drafter", str(home / "run" / "drafter"), "--max-new-tokens", "6"]
    assert cli.main([*line, "--json", str(file)]) == 0
    assert "HTTP takes" in capfd.readouterr().out
    found = read_artifact(file, bench.SCHEMA)
    assert (found["policy"], found["users"], found["kind"]) == ("fixed:4", 2, "dspark")
    assert cli.main([*line, "--policy", "causal"]) == 2
    assert "Measure it with `dspark profile`" in capfd.readouterr().err
