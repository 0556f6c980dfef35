"""Streaming text: every character once, none cut in two, the same as decoding all at the end."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dspark.targets.detokenize import KEPT, TextStream, TokenTexts
from fakes import STOP_ID, tiny_target_folder

TEXTS = [
    "Plain words, one after the other.",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich",
    "数字 and ελληνικά, a 🦀 and a family 👩‍👩‍👧",
    "  two spaces, a\ttab\n\n    and an indent\r\n",
    "ffi ligatures, é as two marks, \u200bzero width",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A byte-level tokenizer that splits every rare character over several tokens."""
    folder = tiny_target_folder(
        tmp_path_factory.mktemp("t") / "t", vocab_size=400, layers=2, hidden=16, heads=2
    )
    return AutoTokenizer.from_pretrained(folder)


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(i) for i in ids), stream.rest()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    found = pieces(tokenizer, ids)
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    assert found[-1] == ""


def test_a_character_comes_with_its_last_byte(tokenizer: Any) -> None:
    ids = tokenizer("a🦀b")["input_ids"]
    assert len(ids) == 6
    assert pieces(tokenizer, ids) == ["a", "", "", "", "🦀", "b", ""]


@given(ids=st.lists(st.integers(0, 399), max_size=40))
def test_any_tokens_give_what_decoding_gives(tokenizer: Any, ids: list[int]) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces(tokenizer, ids)) == whole


@given(st.data())
def test_random_text(tokenizer: Any, data: st.DataObject) -> None:
    text = data.draw(st.text(st.characters(codec="utf-8"), max_size=30))
    assert "".join(pieces(tokenizer, tokenizer(text)["input_ids"])) == text


def test_special_tokens_are_left_out(tokenizer: Any) -> None:
    ids = [*tokenizer("one")["input_ids"], STOP_ID, *tokenizer(" two")["input_ids"], STOP_ID]
    assert "".join(pieces(tokenizer, ids)) == "one two"


def test_what_never_becomes_a_character_comes_at_the_end(tokenizer: Any) -> None:
    half = tokenizer("🦀")["input_ids"][:2]
    stream = TextStream(tokenizer)
    start = tokenizer("x")["input_ids"]
    assert [stream.push(i) for i in [*start, *half]] == ["x", "", ""]
    rest = stream.rest()
    assert "x" + rest == tokenizer.decode([*start, *half])
    assert "\ufffd" in rest
    assert stream.rest() == ""


def test_half_a_character_and_then_others(tokenizer: Any) -> None:
    half, word = tokenizer("🦀")["input_ids"][:2], tokenizer("abc def")["input_ids"]
    ids = [*word, *half, *word]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_work_does_not_grow_with_the_text(tokenizer: Any) -> None:
    longest = 0

    class Counting:
        def decode(self, ids: list[int], **how: Any) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return str(tokenizer.decode(ids, **how))

    stream, ids = TextStream(Counting()), tokenizer("word 🦀 " * 60)["input_ids"]
    for i in ids:
        stream.push(i)
    assert len(ids) > 400
    assert longest <= 12


def test_the_default_tokenizer(default_target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_target)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)
        assert pieces(tokenizer, ids) == pieces(Plain(tokenizer), ids)


class Plain:
    """A tokenizer of which nothing is known but what it decodes to."""

    def __init__(self, tokenizer: Any) -> None:
        self.decode = tokenizer.decode


def test_texts_of_single_tokens_add_up_where_bytes_do(tokenizer: Any) -> None:
    assert TokenTexts(tokenizer).add_up
    assert not TokenTexts(Plain(tokenizer)).add_up
    cleaning = copy(tokenizer)
    cleaning.clean_up_tokenization_spaces = True
    assert not TokenTexts(cleaning).add_up


@given(ids=st.lists(st.integers(0, 399), max_size=40))
def test_adding_up_cuts_where_decoding_tails_does(tokenizer: Any, ids: list[int]) -> None:
    assert pieces(tokenizer, ids) == pieces(Plain(tokenizer), ids)


@given(st.data())
def test_adding_up_cuts_random_text_where_decoding_tails_does(
    tokenizer: Any, data: st.DataObject
) -> None:
    text = data.draw(st.text(st.characters(codec="utf-8"), max_size=30))
    ids = tokenizer(text)["input_ids"]
    assert pieces(tokenizer, ids) == pieces(Plain(tokenizer), ids)


def test_streams_share_what_is_remembered(tokenizer: Any) -> None:
    texts, ids = TokenTexts(tokenizer), tokenizer("the same words, once more")["input_ids"]
    for _ in range(3):
        stream = TextStream(texts)
        assert "".join(map(stream.push, ids)) == "the same words, once more"
    info = texts.of.cache_info()
    assert (info.misses, info.maxsize) == (len(set(ids)), KEPT)
    assert info.hits == 3 * len(ids) - len(set(ids))


@pytest.mark.parametrize("add_up", [True, False])
def test_spaces_that_depend_on_the_tokens_beside(tokenizer: Any, add_up: bool) -> None:
    """Decoders of SentencePiece take a space off the front of whatever they decode."""

    class Stripping:
        def decode(self, ids: list[int], **how: Any) -> str:
            return str(tokenizer.decode(ids, **how)).removeprefix(" ")

    ids = tokenizer("one two  three")["input_ids"]
    texts = TokenTexts(Stripping())
    assert not texts.add_up
    texts.add_up = add_up
    right = "".join(pieces(texts, ids)) == Stripping().decode(ids)
    assert right is not add_up
