"""Lanes under load: who runs, what is counted, and that lanes take turns."""

from __future__ import annotations

from typing import Any

import pytest

from dspark.core import SamplingParams
from dspark.engine.engine import Engine
from dspark.evaluation import load
from dspark.evaluation.load import Lane, Load
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder
from scripted import answer, random_drafter

PROMPTS = [[1, 20, 30], [9], [40, 41, 42], [50, 51, 52, 53]]
PARAMS = SamplingParams(max_new_tokens=6, ignore_stop=True)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(tiny_target_folder(tmp_path_factory.mktemp("target")), "float32")


def seconds_of_steps(monkeypatch: pytest.MonkeyPatch, step_s: float = 1.0) -> None:
    """A clock on which every engine step takes so long, and nothing else any time."""
    state = {"now": 0.0, "calls": 0}

    def clock() -> float:
        state["calls"] += 1
        if state["calls"] % 2 == 0:  # the call after the step
            state["now"] += step_s
        return state["now"]

    monkeypatch.setattr(load, "perf_counter", clock)


def test_closed_loop_keeps_its_users_busy(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds_of_steps(monkeypatch)
    lane = Lane(Engine(target, slots=3), PROMPTS, PARAMS, users=3)
    monkeypatch.setattr(lane._cut, "randint", lambda low, high: high)
    lane.warm_up(10)
    for _ in range(3):
        lane.turn(10)
    assert lane.clock == 40
    assert [part.steps for part in lane.slices] == [10] * 3
    assert len(lane._running) <= 3
    row = lane.row()
    # Six tokens take six steps: three requests end together, and three more begin.
    assert row["requests"] == 3 * (40 // 6)
    assert row["tokens_per_s"] == 3
    assert row["tokens_per_s_per_user_p50"] == 1
    assert row["ttft_p50"] == 1
    assert (row["mean_verify_len"], row["wasted_share"], row["steps"]) == (0, None, 30)


def test_warm_is_when_every_user_has_heard_something(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds_of_steps(monkeypatch)
    engine = Engine(target, slots=8, prefill_rows=2)  # a prompt takes several steps
    lane = Lane(engine, PROMPTS, PARAMS, users=8)
    lane.warm_up(1)
    assert lane.slices == []
    assert all(watched.first is not None for watched in lane.watched[:8])
    assert lane.clock > 8
    lane.turn(3)
    assert lane.row()["steps"] == 3
    assert len({watched.request.params.max_new_tokens for watched in lane.watched[:8]}) > 2
    lane.turn(100)
    assert {watched.request.params.max_new_tokens for watched in lane.watched[8:]} == {6}
    other = Lane(Engine(target, slots=8), PROMPTS, PARAMS, users=8)
    other.turn(1)  # the same users, whatever the policy
    for mine, its in zip(lane.watched[:8], other.watched, strict=False):
        assert mine.request.params == its.request.params


def test_texts_are_the_targets(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds_of_steps(monkeypatch)
    drafter = random_drafter(target, 3)
    lane = Lane(Engine(target, drafter, slots=2), PROMPTS, PARAMS, users=2)
    lane.turn(20)
    done = [w.request for w in lane.watched if w.ended is not None]
    assert done
    for request in done:
        assert [request.output_ids] == answer(target, None, [request.prompt_ids], request.params)


def test_open_loop_arrivals_wait_for_their_time(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds_of_steps(monkeypatch)
    lane = Lane(Engine(target, slots=4), PROMPTS, PARAMS, rate=0.05, seed=1)
    lane.turn(2000)
    arrived = [w.arrived for w in lane.watched]
    assert 60 < len(arrived) < 140  # 100 expected
    assert arrived == sorted(arrived)
    assert all(w.first > w.arrived for w in lane.watched if w.first is not None)
    assert lane.slices[0].steps < 2000  # time went by without work too


def test_the_same_seed_gives_every_lane_the_same_load(target: Target) -> None:
    one, other = (Lane(Engine(target, slots=2), PROMPTS, PARAMS, users=2, seed=s) for s in (3, 3))
    assert [next(one._order) for _ in range(9)] == [next(other._order) for _ in range(9)]


def test_lanes_take_turns(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds_of_steps(monkeypatch)
    turns: list[str] = []
    plain = Lane.turn

    def turn(self: Lane, seconds: float) -> None:
        turns.append(self.engine.policy.name)
        plain(self, seconds)

    monkeypatch.setattr(Lane, "turn", turn)
    drafter = random_drafter(target, 3)
    build: Any = lambda policy, slots: Engine(target, drafter, policy, slots)  # noqa: E731
    rows = load.run(
        build,
        ["off", "fixed:2"],
        [Load(users=1), Load(rate=0.5)],
        PROMPTS,
        PARAMS,
        seconds=6,
        slice_s=2,
    )
    assert turns[:2] == ["off", "fixed:2"]  # to warm up
    assert turns[2:8] == ["off", "fixed:2", "fixed:2", "off", "off", "fixed:2"]
    assert [(r["policy"], r["users"], r["rate"]) for r in rows] == [
        ("off", 1, 0.0),
        ("fixed:2", 1, 0.0),
        ("off", 0, 0.5),
        ("fixed:2", 0, 0.5),
    ]
    drafted = rows[1]
    assert drafted["mean_verify_len"] > 0
    assert len(drafted["slices"]) == 3
    low, high = drafted["tokens_per_s_ci"]
    assert low <= drafted["tokens_per_s"] <= high
