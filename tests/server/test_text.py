"""Stop strings across token borders."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dspark.core import TokenKind
from dspark.server.text import StopStrings, Token

PIECES = st.lists(st.text("ab", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


def token(number: int, text: str) -> Token:
    return Token(number, text, TokenKind.PLAIN)


@settings(max_examples=60)
@given(PIECES, STOPS)
def test_the_text_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    filter_ = StopStrings(stops)
    shown: list[Token] = []
    read, stopped = "", False
    for number, piece in enumerate(pieces):
        now, stopped = filter_.push(token(number, piece))
        shown += now
        read += piece
        said = "".join(t.text for t in shown)
        assert read.startswith(said)
        assert stopped == any(stop in read for stop in stops)
        if stopped:
            break
        # Nothing is shown that could yet be part of a stop string, and little else is held back.
        for stop in stops:
            assert not any(said.endswith(stop[:n]) and read == said for n in range(1, len(stop)))
        held = [t for t in range(len(shown), number + 1)]
        assert len("".join(pieces[n] for n in held[1:])) < max(map(len, stops), default=1)
    if not stopped:
        shown += filter_.flush()
    ends = [read.index(stop) for stop in stops if stop in read]
    assert "".join(t.text for t in shown) == read[: min(ends, default=len(read))]
    assert [t.id for t in shown] == list(range(len(shown)))


def test_a_stop_string_over_three_tokens_cuts_the_first_of_them() -> None:
    filter_ = StopStrings(["END"])
    assert filter_.push(token(0, "the ")) == ([token(0, "the ")], False)
    assert filter_.push(token(1, "river E")) == ([], False)
    assert filter_.push(token(2, "N")) == ([], False)
    assert filter_.push(token(3, "D of it")) == ([token(1, "river ")], True)


def test_what_was_no_stop_string_comes_out_whole() -> None:
    filter_ = StopStrings(["END", "EXIT"])
    assert filter_.push(token(0, "E")) == ([], False)
    assert filter_.push(token(1, "X")) == ([], False)
    assert filter_.push(token(2, "A")) == ([token(0, "E"), token(1, "X"), token(2, "A")], False)
    assert filter_.push(token(3, "EN")) == ([], False)
    assert filter_.flush() == [token(3, "EN")]


def test_without_stop_strings_nothing_waits() -> None:
    assert StopStrings([]).push(token(0, "END")) == ([token(0, "END")], False)
