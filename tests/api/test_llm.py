"""`LLM`: completions whole and in pieces, one prompt and several, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspark import LLM, SamplingParams
from dspark.core import TokenKind
from dspark.engine.engine import Engine
from dspark.errors import ConfigError, EngineError, PromptTooLongError, RequestError
from tiny import home_with_drafter

TALK = [{"role": "user", "content": "add the rain"}]
SHORT = SamplingParams(max_new_tokens=12)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return home_with_drafter(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def llm(home: Path) -> Iterator[LLM]:
    where = {"drafter": home / "drafter", "policy": "fixed:2", "dtype": "float32"}
    with LLM(home / "target", **where, max_len=128, slots=3) as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_is_left(llm: LLM) -> Iterator[None]:
    yield
    assert not llm.engine.queue
    assert not llm._steps


def test_one_prompt(llm: LLM) -> None:
    output = llm.generate("add the rain", SHORT)
    request = Engine(llm.target).generate([llm.target.encode("add the rain")], SHORT)[0]
    assert list(output.token_ids) == request.output_ids
    assert output.text == str(output) == llm.target.decode(request.output_ids)
    assert list(output.prompt_token_ids) == request.prompt_ids
    assert output.finish_reason in ("stop", "length")
    assert len(output.kinds) == len(output.token_ids)
    assert output.logprobs is None


def test_it_counts_drafts(llm: LLM) -> None:
    output = llm.generate("add the rain", SamplingParams(max_new_tokens=30, ignore_stop=True))
    assert 0 <= output.accepted <= output.verified <= output.drafted
    assert output.verified > 0
    assert output.accepted == output.kinds.count(TokenKind.ACCEPTED)
    assert sum(record.committed for record in output.rounds) == len(output.token_ids) - 1
    assert output.accepted_length == 29 / len(output.rounds)


def test_several_prompts_are_answered_in_order(llm: LLM) -> None:
    prompts = [f"say {n}" for n in range(7)]
    outputs = llm.generate(prompts, SHORT)
    assert [o.token_ids for o in outputs] == [llm.generate(p, SHORT).token_ids for p in prompts]
    assert llm.generate([]) == []


def test_parameters_of_each_prompt(llm: LLM) -> None:
    params = [SamplingParams(max_new_tokens=n, ignore_stop=True) for n in (1, 5, 3)]
    outputs = llm.generate(["a", "b", "c"], params)
    assert [len(output.token_ids) for output in outputs] == [1, 5, 3]


def test_token_ids_and_raw_texts(llm: LLM) -> None:
    ids = llm.target.encode("add the rain", raw=True)
    by_ids = llm.generate(ids, SHORT)
    assert by_ids == llm.generate("add the rain", SHORT, raw=True)
    assert llm.generate([ids, ids], SHORT) == [by_ids, by_ids]
    assert by_ids.prompt_token_ids != llm.generate("add the rain", SHORT).prompt_token_ids


def test_chat(llm: LLM) -> None:
    assert llm.chat(TALK, SHORT) == llm.generate("add the rain", SHORT)
    longer = [*TALK, {"role": "assistant", "content": "no"}, {"role": "user", "content": "why"}]
    both = llm.chat([TALK, longer], SHORT)
    assert both == [llm.chat(TALK, SHORT), llm.chat(longer, SHORT)]


def test_a_stream_gives_pieces(llm: LLM) -> None:
    whole = llm.chat(TALK, SHORT)
    pieces = list(llm.chat(TALK, SHORT, stream=True))
    assert "".join(map(str, pieces)) == whole.text
    assert tuple(i for piece in pieces for i in piece.token_ids) == whole.token_ids
    assert tuple(k for piece in pieces for k in piece.kinds) == whole.kinds
    assert [piece.output for piece in pieces] == [None] * (len(pieces) - 1) + [whole]


def test_leaving_a_stream_ends_its_request(llm: LLM) -> None:
    stream = llm.generate("add the rain", SHORT, stream=True)
    next(iter(stream))
    assert llm.engine.queue
    del stream


def test_streams_beside_each_other_lose_nothing(llm: LLM) -> None:
    expected = [llm.generate(text, SHORT) for text in ("one", "two", "three")]
    first = llm.generate("one", SHORT, stream=True)
    parts = [next(iter(first))]
    second = llm.generate("two", SHORT, stream=True)
    others = [next(iter(second))]
    assert llm.generate("three", SHORT) == expected[2]
    parts, others = [*parts, *first], [*others, *second]
    assert [parts[-1].output, others[-1].output] == expected[:2]
    assert "".join(map(str, parts)) == expected[0].text


def test_logprobs(llm: LLM) -> None:
    output = llm.generate("add", SamplingParams(max_new_tokens=9, ignore_stop=True, logprobs=2))
    assert output.logprobs is not None
    assert len(output.logprobs) == len(output.token_ids)
    for token, told in zip(output.token_ids, output.logprobs, strict=True):
        assert told.top[0][0] == token  # greedy
        assert len(told.top) == 2
        assert told.top[0][1] == pytest.approx(told.logprob)


def test_seeds_reproduce(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=7, max_new_tokens=20)
    assert llm.generate("add", params) == llm.generate(["x", "add"], params)[1]


def test_without_a_drafter(home: Path, llm: LLM) -> None:
    expected = llm.generate("add the rain", SHORT)
    for drafter in ("auto", "none", None):  # no drafter ships for it
        with LLM(home / "target", drafter=drafter, dtype="float32") as plain:
            found = plain.generate("add the rain", SHORT)
            assert plain.drafter is None
            assert plain.calibration is None
        assert (found.text, found.drafted) == (expected.text, 0)


def test_loaded_models_are_taken(llm: LLM) -> None:
    with LLM(llm.target, drafter=llm.drafter, policy="fixed:1", max_len=64) as other:
        assert other.target is llm.target
        assert other.generate("add", SHORT).text == llm.generate("add", SHORT).text


@pytest.mark.parametrize(
    ("ask", "error", "match"),
    [
        (lambda llm: llm.generate(""), RequestError, "^The prompt is empty"),
        (lambda llm: llm.generate(["a", " "]), RequestError, r"^prompts\[1\]: The prompt is empty"),
        (lambda llm: llm.generate([TALK[0]]), RequestError, "neither text nor.*dict.*`chat`"),
        (lambda llm: llm.generate(7), RequestError, "neither text nor token ids .found: int"),
        (lambda llm: llm.generate([[5, "a"]]), RequestError, "neither text nor"),
        (lambda llm: llm.generate([[5], [9999]]), RequestError, r"^prompts\[1\].*vocabulary.*9999"),
        (lambda llm: llm.generate("a " * 2000), PromptTooLongError, "longer than"),
        (lambda llm: llm.generate(["a", "b" * 200]), RequestError, r"^prompts\[1\].*no room"),
        (lambda llm: llm.generate("a", {"temperature": 1}), RequestError, "parameters.*dict"),
        (lambda llm: llm.generate(["a", "b"], [SHORT]), RequestError, "2 prompts, 1 parameters"),
        (lambda llm: llm.generate("a", [SHORT, SHORT]), RequestError, "1 prompts, 2 parameters"),
        (lambda llm: llm.generate(["a"], stream=True), RequestError, "AsyncLLM"),
        (lambda llm: llm.chat("hello"), RequestError, "no list of messages .found: str"),
        (lambda llm: llm.chat([]), RequestError, "an empty one"),
        (lambda llm: llm.chat([TALK, []]), RequestError, r"^prompts\[1\].*an empty one"),
    ],
)
def test_wrong_input_is_one_error_and_nothing_runs(
    llm: LLM, ask: Any, error: type[Exception], match: str
) -> None:
    steps = llm.engine.stats.steps
    with pytest.raises(error, match=match):
        ask(llm)
    assert llm.engine.stats.steps == steps


def test_options_are_checked() -> None:
    with pytest.raises(TypeError):
        SamplingParams(0.5)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"policy": "sometimes"}, "Unknown policy"),
        ({"policy": "fixed:2", "drafter": None}, "needs a drafter"),
        ({"slots": 0}, "too small"),
        ({"verification": "half"}, "half"),
    ],
)
def test_wrong_options(llm: LLM, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        LLM(llm.target, **{"drafter": llm.drafter, **options})


def test_a_failed_step_leaves_an_llm_that_goes_on(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise EngineError("a step failed")

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "verify", fail)
        with pytest.raises(EngineError, match="a step failed"):
            llm.generate(["a", "b"], SHORT)
    assert llm.generate("a", SHORT).token_ids


def test_a_closed_llm_says_so(llm: LLM) -> None:
    other = LLM(llm.target, drafter=None, max_len=64)
    stream = other.generate("a", SHORT, stream=True)
    next(iter(stream))
    other.close()
    other.close()
    for ask in (lambda: other.generate("a"), lambda: other.chat(TALK), lambda: list(stream)):
        with pytest.raises(ConfigError, match="closed"):
            ask()
