"""Peers: who answers when, what is counted, and what each one is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspark.core import RoundRecord, SamplingParams
from dspark.errors import ConfigError
from dspark.evaluation import peers
from dspark.evaluation.answers import Answer, answer_elsewhere, difference
from dspark.evaluation.cells import Contender
from dspark.evaluation.peers import Peer
from dspark.targets.hf_loading import load_module
from dspark.targets.target import load_target
from fakes import STOP_ID, tiny_target_folder
from scripted import TableTarget, answer, random_drafter

PARAMS = SamplingParams(max_new_tokens=8)
PROMPTS = [[1, n] for n in range(2, 6)]
STOP = 6


class Clock:
    """Time that only answers take; the machine gets slower with every one of them."""

    def __init__(self, drift: float = 1.0) -> None:
        self.pace, self.drift = 1.0, drift
        self.order: list[tuple[str, int]] = []

    def peer(
        self, name: str, seconds: float, say: Callable[[list[int]], list[int]], **more: Any
    ) -> Peer:
        """Says what it is told to, in so many seconds of an unhurried machine."""

        def ask(ids: list[int], params: SamplingParams) -> Answer:
            self.order.append((name, ids[-1]))
            given = answer_elsewhere(lambda: say(ids), ids, params)
            given.seconds = seconds * self.pace
            self.pace *= self.drift
            return given

        return Peer(name, ask, version="1", **more)


@pytest.fixture(scope="module")
def target() -> TableTarget:
    return TableTarget(stop_ids=[STOP])


def four(ids: list[int]) -> list[int]:
    return [1, 2, 3, 4]


def test_peers_take_turns_and_another_begins_each_time(target: TableTarget) -> None:
    clock = Clock()
    found = [clock.peer(name, 1.0, four) for name in "abc"]
    found.insert(1, Peer("gone", missing="not here"))
    seen: list[tuple[str, int, int]] = []
    peers.run(target, found, PROMPTS, PARAMS, lambda *state: seen.append(state))
    assert "".join(name for name, _ in clock.order) == "abcbcacababc"
    assert [n for _, n in clock.order] == [n for n in (2, 3, 4, 5) for _ in "abc"]
    assert seen[0] == ("a", 0, 4)
    assert seen[-1] == ("c", 3, 4)


def test_the_first_prompt_warms_up(target: TableTarget) -> None:
    clock = Clock()
    slow_start = clock.peer("b", 1.0, lambda ids: [5] if ids[-1] == 2 else [1, 2])
    plain, other = peers.run(target, [clock.peer("a", 2.0, four), slow_start], PROMPTS, PARAMS)
    assert (plain["prompts"], plain["tokens"], plain["seconds"]) == (3, 12, 6.0)
    assert (other["tokens"], other["tokens_per_s"]) == (6, 2.0)


def test_speeds_ratios_and_intervals(target: TableTarget) -> None:
    clock = Clock()
    found = [clock.peer("a", 2.0, four), clock.peer("b", 0.5, four)]
    plain, fast = peers.run(target, found, PROMPTS, PARAMS)
    assert (plain["tokens_per_s"], plain["ratio_to_plain"]) == (2.0, 1.0)
    assert (fast["tokens_per_s"], fast["ratio_to_plain"]) == (8.0, 4.0)
    assert fast["ratio_ci"] == [4.0, 4.0]
    assert fast["accepted_length"] is None


def test_drift_falls_on_all_alike(target: TableTarget) -> None:
    """Peers of the same speed on a machine that gets a third slower during the run."""
    clock = Clock(drift=1.01)
    found = [clock.peer(name, 1.0, four) for name in "ab"]
    prompts = [[1, n % 5] for n in range(21)]
    _, other = peers.run(target, found, prompts, PARAMS)
    assert other["ratio_to_plain"] == pytest.approx(1.0, abs=1e-3)
    low, high = other["ratio_ci"]
    assert low <= 1.0 <= high


def test_texts_are_compared_up_to_the_stop_token(target: TableTarget) -> None:
    clock = Clock()
    wrong = lambda ids: [1, 2, 0, 4] if ids[-1] == 4 else [1, 2, 3, 4, STOP]  # noqa: E731
    found = [clock.peer("a", 1.0, four), clock.peer("b", 1.0, wrong)]
    plain, other = peers.run(target, found, PROMPTS, PARAMS)
    assert (plain["equal_texts"], plain["largest_gap"]) == (1.0, None)
    assert other["equal_texts"] == round(2 / 3, 4)
    said = four([]), wrong([4])
    requests = [answer_elsewhere(lambda ids=ids: ids, [1, 4], PARAMS).request for ids in said]
    gap = difference(target, "", *requests)["logit_gap"]
    assert gap > 0
    assert other["largest_gap"] == gap


def test_accepted_length_is_of_drafted_rounds(target: TableTarget) -> None:
    clock = Clock()
    drafted = clock.peer("dspark", 1.0, four, drafter="d", policy="fixed:3")
    assert drafted.ask is not None
    inner = drafted.ask

    def ask(ids: list[int], params: SamplingParams) -> Answer:
        given = inner(ids, params)
        given.request.rounds = [RoundRecord(3, 3, 2, 3)]
        return given

    found = [clock.peer("dspark", 1.0, four), Peer("dspark", ask, "d", "fixed:3", "1")]
    plain, other = peers.run(target, found, PROMPTS, PARAMS)
    assert plain["accepted_length"] is None
    assert (other["accepted_length"], other["drafter"], other["policy"]) == (3.0, "d", "fixed:3")


def test_a_missing_peer_is_a_row(target: TableTarget) -> None:
    found = [Clock().peer("a", 1.0, four), Peer("llama", missing="llama is not installed")]
    there, gone = peers.run(target, found, PROMPTS, PARAMS)
    assert there.keys() == gone.keys()
    assert there["missing"] is None
    assert {key: value for key, value in gone.items() if value is not None} == {
        "label": "llama",
        "peer": "llama",
        "missing": "llama is not installed",
    }


@pytest.mark.parametrize("count", [0, 1])
def test_one_prompt_is_too_few(target: TableTarget, count: int) -> None:
    with pytest.raises(ConfigError, match="the first prompt warms up"):
        peers.run(target, [Clock().peer("a", 1.0, four)], PROMPTS[:count], PARAMS)


def test_our_engine_and_transformers_say_the_same(tmp_path: Path) -> None:
    folder = tiny_target_folder(tmp_path / "target")
    target = load_target(folder, "float32")
    contender = Contender("mine", random_drafter(target, 3), 0)
    module = load_module(folder, "float32")[0]
    prompts = [[1, 20, 30], [9, 9, 9], [40, 41, 42]]
    found = [
        peers.plain_peer(target, 64),
        peers.drafted_peer(target, contender, 64),
        peers.drafted_peer(target, contender, 64, "fixed:1"),
        *peers.transformers_peers(module, target),
    ]
    rows = peers.run(target, found, prompts, SamplingParams(max_new_tokens=12))
    assert [(row["peer"], row["drafter"], row["policy"]) for row in rows] == [
        ("dspark", None, "off"),
        ("dspark", "mine", "auto"),
        ("dspark", "mine", "fixed:1"),
        ("transformers", None, None),
        ("transformers", "prompt lookup", None),
    ]
    texts = answer(target, None, prompts[1:], SamplingParams(max_new_tokens=12))
    for row in rows:
        assert row["equal_texts"] == 1.0, row["peer"]
        assert row["tokens"] == sum(map(len, texts))
        assert row["version"]
        assert row["tokens_per_s_ci"][0] <= row["tokens_per_s"] <= row["tokens_per_s_ci"][1]
    assert [row["accepted_length"] is None for row in rows] == [True, False, False, True, True]
    assert STOP_ID in target.stop_ids
