"""Counted rounds against decoding: equal one by one when greedy, on average when drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark.artifacts import read_jsonl
from dspark.core import RULES, Request, SamplingParams
from dspark.data.responses import Response
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.errors import IncompatibleDrafterError
from dspark.evaluation import text_rounds
from dspark.evaluation.round_figures import figures
from dspark.evaluation.text_rounds import Judged, Settings, looks_foreign, run
from dspark.targets.target import Target, load_target
from scripted import ScriptedDrafter, random_drafter, whole_blocks
from tiny import tiny_home

LENGTH = 30
KINDS: dict[str, dict[str, Any]] = {
    "dspark": {},
    "rnn": {"markov_head_type": "rnn"},
    "gated": {"markov_head_type": "gated", "vocabulary": range(0, 160, 2)},
    "candidates": {"markov_head_type": "refined", "candidates": 9},
    "dflash": {"kind": "dflash", "confidence_head": False},
    "eagle3": {"kind": "eagle3", "vocabulary": range(3, 120)},
    "mtp": {"kind": "mtp"},
}
PROMPTS = [[1, 20, 30], [9], list(range(40, 65)), [50, 51] * 6]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def target(home: Path) -> Target:
    return load_target(home / "target", "float32")


def made(target: Target, kind: str) -> Drafter:
    """A drafter near enough to the target that drafts are accepted now and then."""
    options = dict(KINDS[kind])
    return random_drafter(target, 4, gain=6.0, seed=3, **options)


def answers(requests: list[Request], temperature: float) -> list[Response]:
    return [
        Response(
            f"a{i}",
            ("math", "chat")[i % 2],
            np.array(request.prompt_ids, dtype=np.int32),
            np.array(request.output_ids, dtype=np.int32),
            temperature,
            True,
        )
        for i, request in enumerate(requests)
    ]


def decoded(
    target: Target, drafter: Drafter, count: int, temperature: float, rule: str
) -> list[Request]:
    engine = Engine(
        target, drafter, whole_blocks(drafter), slots=32, max_len=128, seed=5, verification=rule
    )
    params = SamplingParams(temperature=temperature, max_new_tokens=LENGTH)
    return engine.generate([PROMPTS[i % len(PROMPTS)] for i in range(count)], params)


def counted(
    target: Target, drafter: Drafter, requests: list[Request], temperature: float, rule: str
) -> list[float]:
    kept = [r for r in requests if len(r.output_ids) > 1]
    rows = run(
        target,
        {"it": Judged(drafter, "")},
        answers(kept, temperature),
        Settings((temperature,), rule),
    )
    return [row["rounds"]["it"][f"{temperature:g}"] for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_rounds_are_those_of_decoding(kind: str, target: Target) -> None:
    drafter = made(target, kind)
    requests = decoded(target, drafter, len(PROMPTS), 0.0, "block")
    rounds = counted(target, drafter, requests, 0.0, "block")
    assert rounds == [len(r.rounds) for r in requests if len(r.output_ids) > 1]


def test_some_greedy_drafts_are_accepted(target: Target) -> None:
    """Else the test above would see nothing: drafts from the target's own texts."""
    plain = Engine(target, policy="off", max_len=128).generate(
        [PROMPTS[0]], SamplingParams(max_new_tokens=LENGTH)
    )
    [text] = answers(plain, 0.0)
    rows = run(target, {"it": Judged(made(target, "dspark"), "")}, [text], Settings((0.0,)))
    assert rows[0]["best_share"] == 1
    assert 1 <= rows[0]["rounds"]["it"]["0"] <= rows[0]["tokens"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["dspark", "gated", "candidates", "eagle3"])
def test_drawn_rounds_are_those_of_decoding_on_average(
    kind: str, rule: str, target: Target
) -> None:
    drafter = made(target, kind)
    requests = decoded(target, drafter, 240, 1.0, rule)
    expected = np.array(counted(target, drafter, requests, 1.0, rule))
    seen = np.array([len(r.rounds) for r in requests if len(r.output_ids) > 1])
    excess = seen - expected
    error = excess.std() / len(excess) ** 0.5
    assert abs(excess.mean()) < 4 * error
    assert excess.std() > 0.1  # rounds hang on more than the text
    tokens = sum(len(r.output_ids) - 1 for r in requests)
    assert tokens / seen.sum() > 1.02  # drafts are accepted


def test_answers_that_are_not_the_target_s_are_noticed(target: Target) -> None:
    drafter = made(target, "dspark")
    rng = np.random.default_rng(0)
    own = answers(decoded(target, drafter, 8, 1.0, "block"), 1.0)
    greedy = answers(decoded(target, drafter, 4, 0.0, "block"), 0.0)
    strange = [
        Response(f"s{t:g}", "math", np.array([1, 2]), rng.integers(3, 150, 40), t, True)
        for t in (0.0, 0.3)
    ]
    texts = [a for a in [*own, *greedy, *strange] if len(a.response_ids) > 1]
    rows = run(target, {"it": Judged(drafter, "")}, texts, Settings())
    assert [row["key"] for row in rows if looks_foreign(row)] == ["s0#0", "s0.3#0"]


def test_finished_answers_are_not_counted_again(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = {"it": Judged(made(target, "dspark"), "aa")}
    texts = answers(decoded(target, judged["it"].drafter, 4, 1.0, "block"), 1.0)
    texts = [a for a in texts if len(a.response_ids) > 1]
    path, whole = tmp_path / "rows.jsonl", run(target, judged, texts, Settings())

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(target, judged, texts, Settings(), rows_path=path, on_done=stop)
    assert len(list(read_jsonl(path))) == 2
    made_anew: list[str] = []
    real = text_rounds._row

    def watched(t: Any, d: Any, completion: Response, s: Any) -> Any:
        made_anew.append(completion.key)
        return real(t, d, completion, s)

    monkeypatch.setattr(text_rounds, "_row", watched)
    assert run(target, judged, texts, Settings(), rows_path=path) == whole
    assert made_anew == [text.key for text in texts[2:]]
    # Other weights or settings find nothing of theirs.
    run(target, {"it": Judged(judged["it"].drafter, "bb")}, texts[:1], Settings(), rows_path=path)
    run(target, judged, texts[:1], Settings(verification="token"), rows_path=path)
    assert made_anew[-2:] == [texts[0].key] * 2
    assert "20, 30" not in path.read_text()  # no text is kept


def test_figures_are_paired() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(20, 40, 50)
    rows = [
        {
            "key": f"k{i}",
            "domain": "math",
            "temperature": 1.0,
            "tokens": 60,
            "best_share": 0.7,
            "deviate": 0.1,
            "rounds": {"a": {"1": float(b)}, "b": {"1": float(b) / 1.01}},
        }
        for i, b in enumerate(base)
    ]
    found = figures(rows, {"a": {"kind": "dspark"}, "b": {"kind": "mtp"}})
    first, second = found["rows"]
    assert first["tokens_per_round"] == pytest.approx(60 * 50 / base.sum(), abs=1e-4)
    assert (first["gain"], first["gain_ci"]) == (0, [0, 0])
    assert second["gain"] == pytest.approx(0.01, abs=1e-4)
    low, high = second["gain_ci"]
    assert high - low < 1e-4  # the texts' own spread cancels
    low, high = second["tokens_per_round_ci"]
    assert high - low > 0.02
    assert found["per_completion"]["rounds"]["a"]["1"] == pytest.approx(base, abs=1e-5)
    json.dumps(found)


def test_a_drafter_that_cannot_be_judged_is_named(target: Target) -> None:
    drafter = ScriptedDrafter(target, lambda slot, position: [])
    with pytest.raises(IncompatibleDrafterError, match=r"odd cannot be judged.*kind dspark"):
        run(target, {"odd": Judged(drafter, "")}, [], Settings())
