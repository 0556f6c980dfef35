"""What a prompt's id decides: temperature, draws, wording."""

from __future__ import annotations

from collections import Counter

import pytest

from dspark.data.prompts import Prompt
from dspark.errors import ConfigError
from dspark.regeneration.mixture import (
    BOXED_SUFFIX,
    DEFAULT_MIXTURE,
    MixturePart,
    digest,
    parse_mixture,
    sampling_params,
    worded,
)


def test_parse() -> None:
    assert parse_mixture("0:0.35,0.6@0.95:0.25,1:0.4") == list(DEFAULT_MIXTURE)
    assert parse_mixture("0.7") == [MixturePart(1.0, 0.7)]
    assert parse_mixture("1@0.9") == [MixturePart(1.0, 1.0, 0.9)]


@pytest.mark.parametrize(
    "text", ["", "x", "0:", "0:x", "0@:1", "-1:1", "0@2:1", "0:0", "0:-1", "0:nan", "0:inf", "1,,1"]
)
def test_mistakes(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_mixture(text)


def test_shares_and_seeds() -> None:
    params = [sampling_params(f"p{i}", DEFAULT_MIXTURE, 9, 0) for i in range(4000)]
    counts = Counter((p.temperature, p.top_p) for p in params)
    for part in DEFAULT_MIXTURE:
        assert counts[part.temperature, part.top_p] / 4000 == pytest.approx(part.share, abs=0.03)
    assert len({p.seed for p in params}) == 4000
    double = [MixturePart(2 * p.share, p.temperature, p.top_p) for p in DEFAULT_MIXTURE]
    assert [sampling_params(f"p{i}", double, 9, 0) for i in range(4000)] == params
    assert [sampling_params(f"p{i}", DEFAULT_MIXTURE, 9, 1) for i in range(4000)] != params


def test_the_hash_is_the_same_everywhere() -> None:
    assert digest(0, "order", "p") == 2172286784871569254  # a file made elsewhere can be resumed
    assert digest(0, "order", "\ud800") >= 0  # a lone surrogate, which JSON can spell


def test_half_of_the_math_prompts_ask_for_a_box() -> None:
    math = [Prompt(f"p{i}", [{"role": "user", "content": "1 + 1"}], "math") for i in range(1000)]
    contents = [worded(prompt, 0.5, 0)[-1]["content"] for prompt in math]
    assert set(contents) == {"1 + 1", "1 + 1" + BOXED_SUFFIX}
    assert contents.count("1 + 1") / 1000 == pytest.approx(0.5, abs=0.05)
    assert all(prompt.text == "1 + 1" for prompt in math), "the prompts themselves stay"
    assert all(worded(prompt, 0.0, 0) == prompt.messages for prompt in math)
    other = Prompt("p", [{"role": "user", "content": "hi"}], "chat")
    assert worded(other, 1.0, 0) == other.messages
