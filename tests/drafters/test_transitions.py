"""Kept transition biases: the head's own, whatever was asked before and however few fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dspark import native
from dspark.drafters.block import transitions as module
from dspark.drafters.block.heads import MarkovHead
from dspark.drafters.block.transitions import Transitions

V, OUT, R, SLOTS = 30, 17, 4, 5
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
    transitions = Transitions(made, kept_bytes=kept * ROW)
    for ids in calls:
        asked = torch.tensor(ids)
        torch.testing.assert_close(transitions.after(asked), made.bias(made.previous(asked)))
    assert len(transitions.kept) == kept


@given(
    kept=st.integers(1, V),
    first=st.integers(0, V),
    along=st.integers(0, 5),
    calls=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=6), max_size=30),
)
def test_rows_worked_out_bit_by_bit_are_the_heads_own(
    kept: int, first: int, along: int, calls: list[list[int]]
) -> None:
    made = head()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FIRST", first)
        patch.setattr(module, "_ALONG", along)
        transitions = Transitions(made, kept_bytes=kept * ROW)
        assert transitions.kept == set(range(min(first, kept)))
        for ids in calls:
            before, asked = transitions.kept, torch.tensor(ids)
            torch.testing.assert_close(transitions.after(asked), made.bias(made.previous(asked)))
            assert len(before) <= len(transitions.kept) <= kept


def test_every_place_is_filled_along_with_what_is_missing() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FIRST", 2)
        patch.setattr(module, "_ALONG", 3)
        transitions = Transitions(head(), kept_bytes=9 * ROW)
        for token in (20, 21, 22):
            transitions.after(torch.tensor([token]))
    assert transitions.kept == {0, 1, 2, 3, 4, 5, 20, 21, 22}


def test_a_kept_row_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = head(), []
    transitions = Transitions(made, kept_bytes=3 * ROW)  # of tokens 0, 1 and 2
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
    assert transitions.kept == {0, 1, 9}


def test_more_tokens_than_rows_are_worked_out_and_not_kept() -> None:
    made = head()
    transitions = Transitions(made, kept_bytes=2 * ROW)
    asked = torch.tensor([7, 8, 9])
    assert torch.equal(transitions.after(asked), made.bias(made.previous(asked)))
    assert transitions.kept == {0, 1}


def slot_by_slot(
    made: MarkovHead, base_RKV: torch.Tensor, anchors: list[int], target_ids: torch.Tensor
) -> list[list[int]]:
    """Greedy blocks, anchors first, by the definition."""
    blocks = []
    for base_KV, token in zip(base_RKV.float(), anchors, strict=True):
        block = [token]
        for base_V in base_KV:
            bias_V = made.bias(made.previous(torch.tensor(block[-1]))).float()
            block.append(int(target_ids[(base_V + bias_V).argmax()]))
        blocks.append(block)
    return blocks


@pytest.mark.skipif(native.kernels() is None, reason="needs the compiled kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    kept=st.integers(3, V),
    calls=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=3), min_size=1, max_size=9),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_whole_blocks_are_those_of_the_loop(
    kept: int, calls: list[list[int]], seed: int, dtype: torch.dtype
) -> None:
    made = head().to(dtype)
    made.markov_w2.weight.mul_(200)  # the token before decides as much as the base
    random = torch.Generator().manual_seed(seed)
    target_ids = torch.randperm(V, generator=random)[:OUT]
    row = OUT * made.markov_w2.weight.element_size()
    transitions = Transitions(made, target_ids, kept_bytes=kept * row)
    for anchors in calls:
        base_RKV = torch.randn(len(anchors), SLOTS, OUT, generator=random).to(dtype)
        assert transitions.can_follow(base_RKV)
        found_RK = transitions.follow(base_RKV, torch.tensor(anchors))
        assert found_RK.tolist() == slot_by_slot(made, base_RKV, anchors, target_ids)
        assert len(transitions.kept) == kept


@pytest.mark.skipif(native.kernels() is None, reason="needs the compiled kernels")
@torch.no_grad()
def test_whole_blocks_of_what_is_no_number_are_some_tokens() -> None:
    transitions = Transitions(head())
    base_RKV = torch.full((2, SLOTS, OUT), float("nan"))
    assert transitions.follow(base_RKV, torch.tensor([1, 2])).tolist() == [
        [1, *[0] * SLOTS],
        [2, *[0] * SLOTS],
    ]


def test_more_requests_than_rows_go_slot_by_slot() -> None:
    transitions = Transitions(head(), kept_bytes=2 * ROW)
    assert not transitions.can_follow(torch.zeros(3, SLOTS, OUT))
