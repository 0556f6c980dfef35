"""The demo on a tiny target: figures, texts, and what is said where texts part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.core import Request, RoundRecord, SamplingParams, StepOutput, TokenKind
from dspark.data.prompts import Prompt
from dspark.drafters.checkpoint import load_drafter
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.evaluation import demo
from dspark.evaluation.demo import Answer, Ways
from dspark.targets.hf_loading import load_module
from dspark.targets.target import Target, load_target
from tiny import tiny_drafter, tiny_home

PARAMS = SamplingParams(max_new_tokens=24, ignore_stop=False)
SCHEMA_FIELDS = {
    "target",
    "drafter",
    "dtype",
    "prompts",
    "new_tokens",
    "plain_tokens_per_s",
    "dspark_tokens_per_s",
    "speedup",
    "accepted_length",
    "accept_by_position",
    "identical_texts",
    "first_differences",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tiny_home(tmp_path_factory.mktemp("home"), count=16)
    tiny_drafter(home)
    return home


@pytest.fixture(scope="module")
def target(home: Path) -> Target:
    return load_target(home / "target", "float32")


@pytest.fixture(scope="module")
def drafter(home: Path, target: Target) -> Drafter:
    return load_drafter(home / "run" / "drafter", target)


def prompts(count: int = 6) -> list[Prompt]:
    domains = ("math", "code", "chat")
    texts = ("add the rain", "sort three birds", "name a river", "count one line")
    return [
        Prompt(
            f"p{n}",
            [{"role": "user", "content": f"{texts[n % 4]} {n}"}],
            domains[n % 3],
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def result(home: Path, target: Target, drafter: Drafter) -> dict[str, Any]:
    module = load_module(home / "target", "float32")[0]
    return demo.run(target, drafter, prompts(), PARAMS, policy="fixed:4", compare=module)


def test_schema_fields(result: dict[str, Any], target: Target) -> None:
    assert result.keys() >= SCHEMA_FIELDS
    assert result["target"] == target.name
    assert result["drafter"] == "dspark"
    assert result["dtype"] == "float32"
    assert result["prompts"] == 6
    assert 0 < result["new_tokens"] <= 6 * 24
    assert result["policy"] == "fixed:4"


def test_figures_fit_together(result: dict[str, Any]) -> None:
    plain, dspark = result["plain_tokens_per_s"], result["dspark_tokens_per_s"]
    assert result["speedup"] == pytest.approx(dspark / plain, rel=0.01)
    other = result["transformers_tokens_per_s"]
    assert result["plain_over_transformers"] == pytest.approx(plain / other, rel=0.01)
    assert result["dspark_over_transformers"] == pytest.approx(dspark / other, rel=0.01)
    assert 1.2 < result["accepted_length"] <= 5
    assert len(result["accept_by_position"]) <= 4
    assert all(0 <= a <= 1 or math.isnan(a) for a in result["accept_by_position"])
    assert list(result["domains"]) == ["math", "code", "chat", "macro"]
    rows = [result["domains"][name] for name in ("math", "code", "chat")]
    macro = result["domains"]["macro"]
    for key in ("accepted_length", "speedup"):
        assert macro[key] == pytest.approx(sum(row[key] for row in rows) / 3, abs=1e-3)
    assert sum(row["prompts"] for row in rows) == macro["prompts"] == 6
    share = result["time_share"]
    assert 0 < share["draft"] < 1
    assert 0 < share["verify"] < 1
    assert share["draft"] + share["verify"] < 1


def test_float32_texts_are_identical(result: dict[str, Any]) -> None:
    assert result["identical_texts"] == 1.0
    assert result["first_differences"] == []


def test_generate_of_transformers_says_the_same(home: Path, target: Target) -> None:
    module = load_module(home / "target", "float32")[0]
    engine = Engine(target, None, slots=1, max_len=200)
    for prompt in prompts(4):
        ids = target.encode_messages(prompt.messages)
        theirs = demo.answer_with_transformers(module, target, ids, PARAMS)
        (ours,) = engine.generate([ids], PARAMS)
        assert theirs.request.output_ids == ours.output_ids
        assert theirs.seconds > 0


def test_both_ways_are_shown_in_turn(target: Target, drafter: Drafter) -> None:
    shown: list[tuple[str, str, StepOutput]] = []
    demo.run(
        target,
        drafter,
        prompts(3),
        PARAMS,
        show=lambda way, prompt, output: shown.append((way, prompt.id, output)),
    )
    order = list(dict.fromkeys((prompt, way) for way, prompt, _ in shown))
    assert order == [
        ("p0", "plain"),
        ("p0", "dspark"),
        ("p1", "dspark"),  # turns change, so that nobody is always first
        ("p1", "plain"),
        ("p2", "plain"),
        ("p2", "dspark"),
    ]
    for way, kinds in (("plain", {TokenKind.PLAIN}), ("dspark", set(TokenKind))):
        found = {k for w, _, output in shown if w == way for k in output.kinds}
        assert found == kinds
    for way, prompt, output in shown:
        if output.finished:
            ids = [i for w, p, o in shown if (w, p) == (way, prompt) for i in o.token_ids]
            assert ids == output.request.output_ids


class Clock:
    """Time that passes only as told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def numbers_within(seconds: float | None, each: float, domains: Sequence[str]) -> list[int]:
    """Which prompts are answered when each takes this long; one letter a prompt, its domain."""
    clock = Clock()
    asked = [Prompt(str(n), [{"role": "user", "content": "x"}], d) for n, d in enumerate(domains)]
    taken = []
    for index in demo.within(asked, seconds, clock):
        taken.append(index)
        clock.now += each
    return taken


@pytest.mark.parametrize(
    ("seconds", "each", "domains", "answered"),
    [
        (None, 1e6, "abcabc", [0, 1, 2, 3, 4, 5]),
        (60, 1, "abcabc", [0, 1, 2, 3, 4, 5]),
        (60, 14, "abcabcabc", [0, 1, 2, 3, 4]),  # the fifth starts after 56 seconds
        (60, 20, "abcabc", [0, 1, 2]),  # none starts when the time is spent to the second
        (60, 32, "abcabc", [0, 1, 2]),  # the third is the first of its domain
        (60, 32, "aabbcc", [0, 1, 2, 4]),  # after 64 and after 96 seconds
        (60, 32, "aaabcc", [0, 1, 3, 4]),
        (60, 70, "abcd", [0, 1]),  # twice the time is the end for all
        (1, 1000, "abc", [0]),
        (60, 20, ["", "", "", ""], [0, 1, 2]),
    ],
)
def test_a_budget_of_seconds(
    seconds: float | None, each: float, domains: Sequence[str], answered: list[int]
) -> None:
    assert numbers_within(seconds, each, domains) == answered


def test_a_run_within_seconds(target: Target, drafter: Drafter) -> None:
    clock = Clock()
    shown: list[tuple[str, str]] = []

    def show(way: str, prompt: Prompt, output: StepOutput) -> None:
        shown.append((prompt.id, way))
        clock.now += 10 * output.finished

    found = demo.run(target, drafter, prompts(6), PARAMS, seconds=55, show=show, clock=clock)
    assert found["prompts"] == 3
    assert found["seconds"] == 55
    assert not found["interrupted"]
    assert found["domains"]["macro"]["prompts"] == 3
    assert list(dict.fromkeys(p for p, _ in shown)) == ["p0", "p1", "p2"]


def test_where_it_ran_is_told(result: dict[str, Any], target: Target) -> None:
    assert result["machine"] == demo.machine(target) != ""
    assert result["kernels"] == demo.kernels() != ""
    assert result["seconds"] is None


@pytest.mark.parametrize("way", ["plain", "dspark"])
def test_ctrl_c_keeps_what_is_answered(target: Target, drafter: Drafter, way: str) -> None:
    def show(now: str, prompt: Prompt, output: StepOutput) -> None:
        if (now, prompt.id) == (way, "p2"):
            raise KeyboardInterrupt

    found = demo.run(target, drafter, prompts(6), PARAMS, show=show)
    whole = demo.run(target, drafter, prompts(2), PARAMS)
    assert found["interrupted"]
    for key in ("prompts", "new_tokens", "accepted_length", "identical_texts"):
        assert found[key] == whole[key], key
    assert list(found["domains"]) == ["math", "code", "macro"]
    assert 0 < sum(found["time_share"].values()) < 1


def test_ctrl_c_before_the_first_answer(target: Target, drafter: Drafter) -> None:
    def show(way: str, prompt: Prompt, output: StepOutput) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run(target, drafter, prompts(6), PARAMS, show=show)


def test_sampling_with_a_seed_and_a_policy(target: Target, drafter: Drafter) -> None:
    warm = SamplingParams(temperature=1.0, seed=3, max_new_tokens=12)
    found = [demo.run(target, drafter, prompts(2), warm, policy="fixed:2") for _ in range(2)]
    assert found[0]["policy"] == "fixed:2"
    assert found[0]["accept_by_position"] == found[1]["accept_by_position"]
    assert len(found[0]["accept_by_position"]) == 2
    assert found[0]["temperature"] == 1.0


def test_answers_of_one_token_are_no_division_by_zero(target: Target, drafter: Drafter) -> None:
    found = demo.run(target, drafter, prompts(1), SamplingParams(max_new_tokens=1))
    assert found["new_tokens"] == 1
    assert math.isnan(found["accepted_length"])
    assert found["accept_by_position"] == []


def done(ids: list[int], output: list[int], rounds: list[RoundRecord] | None = None) -> Request:
    request = Request(0, ids, PARAMS)
    request.output_ids = output
    request.rounds = rounds or []
    return request


def test_a_difference_is_reported_with_its_gap(target: Target, drafter: Drafter) -> None:
    prompt = prompts(2)
    ids = [target.encode_messages(p.messages) for p in prompt]
    plain = [r.output_ids for r in Engine(target, None, slots=1, max_len=200).generate(ids, PARAMS)]
    at = 3
    wrong = [*plain[1][:at], plain[1][at] % 100 + 7, *plain[1][at + 1 :]]
    ways = Ways(
        {
            "plain": [Answer(done(i, o), 2.0) for i, o in zip(ids, plain, strict=True)],
            "dspark": [Answer(done(ids[0], plain[0]), 1.0), Answer(done(ids[1], wrong), 1.0)],
        }
    )
    found = demo.summary(target, drafter, prompt, PARAMS, ways)
    assert found["identical_texts"] == 0.5
    assert found["speedup"] == pytest.approx(2.0)
    (parted,) = found["first_differences"]
    assert parted["prompt"] == "p1"
    assert parted["position"] == at
    last, _ = target.states([[*ids[1], *plain[1][:at]]], (1,))
    best = target.logits(last[-1:])[0].topk(2)
    assert int(best.indices[0]) == plain[1][at]
    assert parted["logit_gap"] == pytest.approx(float(best.values[0] - best.values[1]), abs=1e-4)


def test_a_text_that_ends_early_differs_where_it_ends(target: Target) -> None:
    found = demo.difference(target, "x", done([1, 9], [7, 8, 9]), done([1, 9], [7, 8]))
    assert found["position"] == 2
    assert found["logit_gap"] > 0


def test_a_broken_drafter_is_found_out(target: Target, drafter: Drafter) -> None:
    """A target that errs now and then in its own verify pass makes texts part."""
    engine_forward = target.forward

    def forward(rows: Any, cache: Any, tap_ids: Any = ()) -> Any:
        last, taps = engine_forward(rows, cache, tap_ids)
        return (last.roll(1, 0) if len(rows.ids_T) == 5 else last), taps

    target.forward = forward  # type: ignore[method-assign]
    try:
        found = demo.run(target, drafter, prompts(3), PARAMS, policy="fixed:4")
    finally:
        target.forward = engine_forward  # type: ignore[method-assign]
    assert found["identical_texts"] < 1
    assert len(found["first_differences"]) == round((1 - found["identical_texts"]) * 3)
    assert all(d["logit_gap"] >= 0 for d in found["first_differences"])


def test_tokens_per_s_is_a_ratio_of_totals() -> None:
    ways = Ways({"plain": [Answer(done([1], [1] * 10), 1.0), Answer(done([1], [1] * 30), 9.0)]})
    assert ways.tokens_per_s("plain") == 4.0
    assert ways.tokens_per_s("plain", [0]) == 10.0
