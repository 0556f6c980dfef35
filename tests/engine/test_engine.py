"""Requests that come, go and fail, and what an engine counts and computes."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.core import FinishReason, SamplingParams, StepOutput, StepStats
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.errors import ConfigError, EngineError, RequestError
from dspark.targets.hf_loading import load_module
from dspark.targets.hf_target import HFTarget
from dspark.targets.target import Target
from fakes import STOP_ID
from scripted import TableTarget, answer, random_drafter, texts, whole_blocks

PROMPTS = [[1, 20, 30], [9], list(range(40, 65)), [50, 51] * 6, [7, 8, 9, 10, 11]]
GREEDY = SamplingParams(max_new_tokens=30)
SAMPLED = SamplingParams(temperature=1.0, top_k=40, top_p=0.95, max_new_tokens=30, seed=5)


# ---- requests coming and going -----------------------------------------------------------------


def test_requests_join_and_leave(target: Target, drafter: Drafter) -> None:
    plain = answer(target, None, PROMPTS, GREEDY)
    engine = Engine(target, drafter, whole_blocks(drafter), slots=3)
    first = [engine.submit(prompt, GREEDY) for prompt in PROMPTS[:3]]
    engine.step()
    engine.step()
    engine.cancel(first[1])
    said = list(first[1].output_ids)
    second = [engine.submit(prompt, GREEDY) for prompt in PROMPTS[3:]]
    waiting = engine.submit(PROMPTS[0], GREEDY)
    engine.cancel(waiting)
    outputs: list[StepOutput] = []
    while step := engine.step():
        outputs += step
    assert texts([first[0], first[2], *second]) == [plain[0], *plain[2:]]
    assert (first[1].finish, first[1].output_ids) == (FinishReason.CANCELLED, said)
    assert (waiting.finish, waiting.output_ids) == (FinishReason.CANCELLED, [])
    assert sum(output.finished for output in outputs) == 4
    assert not engine.queue


def test_streaming(target: Target, drafter: Drafter) -> None:
    engine = Engine(target, drafter, whole_blocks(drafter), slots=1)
    outputs = list(engine.stream(PROMPTS[0], GREEDY))
    said = [token for output in outputs for token in output.token_ids]
    assert [said] == answer(target, None, PROMPTS[:1], GREEDY)
    assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]
    stream = engine.stream(PROMPTS[1], GREEDY)
    request = next(stream).request
    stream.close()  # type: ignore[attr-defined]
    assert request.finish is FinishReason.CANCELLED
    assert not engine.queue


def test_an_interrupted_generate_leaves_the_engine_usable(target: Target, drafter: Drafter) -> None:
    engine = Engine(target, drafter, whole_blocks(drafter), slots=2)
    steps = []

    def interrupt(outputs: list[StepOutput]) -> None:
        steps.append(outputs)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, GREEDY, interrupt)
    assert not engine.queue
    assert len(engine.queue.slots) == 2
    assert texts(engine.generate(PROMPTS, GREEDY)) == answer(target, None, PROMPTS, GREEDY)


def test_a_failed_step_changes_nothing_and_can_be_repeated(
    target: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(target, drafter, whole_blocks(drafter), slots=2)
    requests = [engine.submit(prompt, SAMPLED) for prompt in PROMPTS]
    for _ in range(4):
        before = [list(text) for text in texts(requests)]
        with monkeypatch.context() as patch:
            patch.setattr(target, "logits", lambda last: torch.full((len(last), 160), torch.nan))
            with pytest.raises(EngineError):
                engine.step()
        assert texts(requests) == before
        engine.step()
    while engine.step():
        pass
    assert texts(requests) == answer(target, drafter, PROMPTS, SAMPLED)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_a_failed_step_names_the_requests_that_failed_it(
    params: SamplingParams, target: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(target, drafter, "fixed:2", slots=3)
    requests = [engine.submit(prompt, params) for prompt in PROMPTS[:3]]
    logits = target.logits

    def spoiled(last: torch.Tensor) -> torch.Tensor:
        out = logits(last).clone()
        out[len(last) // 2] = torch.nan  # the second of three requests with as many rows
        return out

    for _ in range(2):  # at the first tokens, and in a round
        with monkeypatch.context() as patch:
            patch.setattr(target, "logits", spoiled)
            with pytest.raises(EngineError) as caught:
                engine.step()
        assert caught.value.requests == (requests[1].id,)
        engine.step()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "empty"),
        ([5] * 32, r"no room to answer \(found: 32 tokens, room for 32\). Shorten"),
        ([5] * 99, "99 tokens"),
        ([5, 160], r"vocabulary \(found: 160\). Use ids from 0 to 159"),
        ([-1], "-1"),
    ],
)
def test_prompts_that_cannot_be_served(prompt: list[int], words: str, target: Target) -> None:
    engine = Engine(target, slots=1, max_len=32)
    for call in (engine.submit, engine.stream, lambda p: engine.generate([[3], p])):
        with pytest.raises(RequestError, match=words):
            call(prompt)
    assert not engine.queue


def test_engines_that_cannot_be(target: Target, drafter: Drafter) -> None:
    for options in ({"slots": 0}, {"max_len": 1}, {"policy": "fixed:6"}, {"policy": "on"}):
        with pytest.raises(ConfigError):
            Engine(target, drafter, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a drafter"):
        Engine(target, None, "fixed:2")


# ---- what is counted and what is computed ------------------------------------------------------


def test_totals(target: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr("dspark.engine.engine.perf_counter", lambda: next(ticks))
    engine = Engine(target, drafter, whole_blocks(drafter), slots=2)
    requests = engine.generate(PROMPTS, GREEDY)
    total = engine.stats
    assert total.committed == sum(map(len, texts(requests)))
    rounds = [record for request in requests for record in request.rounds]
    assert total.batch_tokens == sum(map(len, PROMPTS)) + sum(1 + r.verified for r in rounds)
    parts = [total.draft_s, total.verify_s, total.schedule_s, total.other_s]
    assert min(parts) > 0
    assert total.seconds == pytest.approx(sum(parts))
    engine.stats = StepStats()
    engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=1))
    assert (engine.stats.steps, engine.stats.draft_s < total.draft_s) == (1, True)


def test_only_what_is_needed_is_computed(
    target: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    forward, logits, draft = target.forward, target.logits, drafter.draft
    monkeypatch.setattr(
        target, "forward", lambda rows, *rest: calls.append(rest[1]) or forward(rows, *rest)
    )
    monkeypatch.setattr(target, "logits", lambda x: calls.append(len(x)) or logits(x))
    monkeypatch.setattr(
        drafter, "draft", lambda *a, **m: calls.append(f"draft {m['steps']}") or draft(*a, **m)
    )
    params = SamplingParams(max_new_tokens=2)
    Engine(target, drafter, "off", slots=1).generate([PROMPTS[2]], params)
    assert calls == [(), 1, (), 1]
    calls.clear()
    taps = drafter.config.target_layer_ids
    Engine(target, drafter, "fixed:3", slots=1).generate([PROMPTS[2]], params)
    assert calls == [taps, 1, "draft 3", taps, 4]


def test_nothing_to_do(target: Target) -> None:
    engine = Engine(target)
    assert engine.step() == []
    assert engine.generate([]) == []
    assert engine.stats == StepStats()


def test_the_fallback_target_gives_the_same_text(
    folders: dict[str, Path], target: Target, drafter: Drafter
) -> None:
    module, tokenizer = load_module(folders["llama"], "float32")
    fallback = HFTarget("fallback", target.spec, tokenizer, target.stop_ids, module)
    for params in (GREEDY, SAMPLED):
        for used in (None, drafter):
            mine = answer(fallback, used, PROMPTS, params, slots=2)
            assert mine == answer(target, used, PROMPTS, params, slots=2)


def test_any_target_runs_in_the_same_engine() -> None:
    target = TableTarget(stop_ids=[STOP_ID])
    plain = answer(target, None, [[1, 2], [3], [4, 4, 4]], GREEDY)
    drafter = random_drafter(target, 3, gain=20.0)
    assert answer(target, drafter, [[1, 2], [3], [4, 4, 4]], GREEDY, slots=2) == plain


def test_a_top_k_that_no_tensor_holds_is_refused() -> None:
    """It once reached a step, and the step's failure stopped the engine."""
    assert SamplingParams(top_k=2**31 - 1).top_k == 2**31 - 1
    with pytest.raises(RequestError, match="top_k is out of range"):
        SamplingParams(top_k=2**63)
