"""Kept transition biases: the head's own, whatever was asked before and however few fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dspark.models.heads import MarkovHead
from dspark.models.transitions import Transitions

V, OUT, R = 30, 17, 4
ROW = OUT * 4  # bytes


def head() -> MarkovHead:
    torch.manual_seed(0)
    made = MarkovHead(V, OUT, R, hidden_size=8)
    return made.requires_grad_(False)


@given(
    kept=st.integers(1, V),
    calls=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=6), max_size=30),
)
def test_the_heads_own_biases(kept: int, calls: list[list[int]]) -> None:
    made = head()
    transitions = Transitions(made, kept * ROW)
    for ids in calls:
        asked = torch.tensor(ids)
        torch.testing.assert_close(transitions.after(asked), made.bias(made.previous(asked)))
    assert len(transitions._place) == kept
    assert sorted(transitions._place.values()) == list(range(kept))


def test_a_kept_row_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = head(), []
    transitions = Transitions(made, 3 * ROW)  # of tokens 0, 1 and 2
    bias = made.bias
    monkeypatch.setattr(made, "bias", lambda x: asked.append(len(x)) or bias(x))
    for ids in ([1], [0, 2], [2, 0, 0]):
        transitions.after(torch.tensor(ids))
    assert asked == []
    transitions.after(torch.tensor([5]))  # takes the place of 1, unused for longest
    transitions.after(torch.tensor([0, 2, 5]))
    assert asked == [1]
    transitions.after(torch.tensor([1, 9, 0]))
    assert asked == [1, 2]
    assert set(transitions._place) == {0, 1, 9}


def test_more_tokens_than_rows_are_worked_out_and_not_kept() -> None:
    made = head()
    transitions = Transitions(made, 2 * ROW)
    asked = torch.tensor([7, 8, 9])
    assert torch.equal(transitions.after(asked), made.bias(made.previous(asked)))
    assert set(transitions._place) == {0, 1}
