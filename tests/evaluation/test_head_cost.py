"""The heads' cost: which heads run in which round, and that the drafter comes back whole."""

from __future__ import annotations

from typing import Any

import pytest

from dspark.errors import ConfigError
from dspark.evaluation import head_cost
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder
from scripted import random_drafter


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(tiny_target_folder(tmp_path_factory.mktemp("target")), "float32")


@pytest.mark.parametrize("kind", ["vanilla", "rnn"])
def test_every_way_has_its_rounds(
    target: Target, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter: Any = random_drafter(target, 4, markov_head_type=kind)
    heads = drafter.markov_head, drafter.confidence_head
    seen = []
    plain = drafter.draft

    def draft(*args: Any, **more: Any) -> Any:
        seen.append((drafter.markov_head is not None, drafter.confidence_head is not None))
        return plain(*args, **more)

    monkeypatch.setattr(drafter, "draft", draft)
    monkeypatch.setattr(head_cost, "ANSWER", 24)  # several answers
    row = head_cost.measure(target, drafter, [[1, 20, 30 + i] for i in range(9)], rounds=12)
    assert (row["block_size"], row["markov_head_type"]) == (4, kind)
    assert row["rounds"] >= 12
    assert row["round_ms"] > 0
    assert row["share"] == pytest.approx(row["head_ms"] / row["round_ms"], abs=2e-3)
    assert {way: seen.count(way) for way in seen}.keys() == {
        (True, True),
        (True, False),
        (False, False),
    }
    assert (drafter.markov_head, drafter.confidence_head) == heads


def test_rounds_end_with_the_prompts(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = random_drafter(target, 4)
    monkeypatch.setattr(head_cost, "ANSWER", 24)
    row = head_cost.measure(target, drafter, [[1, 20, 30]], rounds=1000)
    assert 1 <= row["rounds"] <= 8
    monkeypatch.setattr(head_cost, "ANSWER", 1)
    with pytest.raises(ConfigError, match="no rounds"):
        head_cost.measure(target, drafter, [[1, 20, 30]], rounds=10)


def test_hiccups_do_not_count() -> None:
    assert head_cost._mean([1.0] * 19 + [100.0]) == 1.0
    assert head_cost._mean([1.0, 3.0]) == 2.0


def test_a_drafter_without_the_head_is_refused(target: Target) -> None:
    drafter = random_drafter(target, 4, kind="dflash")
    with pytest.raises(ConfigError, match="no sequential head"):
        head_cost.measure(target, drafter, [[1, 2]], 3)
