"""The order of sequences, as a function of the step number."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dspark.data.responses import Response
from dspark.training.batches import Visit, share, training_sequences, visits


def first_epoch(sizes: list[int], budget: int, per_step: int, passes: int) -> list[Visit]:
    """Visits until every sequence had its turns of the first epoch."""
    turns = passes if sum(sizes) > budget else 1
    found: list[Visit] = []
    for visit in visits(sizes, budget, per_step, passes, seed=3):
        found.append(visit)
        if sum(len(v.indices) for v in found) >= turns * len(sizes):
            break
    assert sum(len(v.indices) for v in found) == turns * len(sizes)
    return found


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    budget=st.integers(0, 60),
    per_step=st.integers(1, 7),
    passes=st.integers(1, 3),
)
def test_an_epoch_shows_every_sequence_equally_often(
    sizes: list[int], budget: int, per_step: int, passes: int
) -> None:
    seen: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for visit in first_epoch(sizes, budget, per_step, passes):
        assert 1 <= len(visit.indices) <= per_step
        seen.update(visit.indices)
        pairs.update((i, visit.epoch) for i in visit.indices)
    turns = passes if sum(sizes) > budget else 1
    assert seen == dict.fromkeys(range(len(sizes)), turns)
    assert set(pairs.values()) == {1}  # never the same anchors of a sequence twice


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=30),
    budget=st.integers(9, 60),
    passes=st.integers(1, 3),
)
def test_what_is_gone_through_together_fits_the_budget(
    sizes: list[int], budget: int, passes: int
) -> None:
    """Sequences that take turns `passes` times before others come form a window."""
    order = [v.indices[0] for v in first_epoch(sizes, budget, 1, passes)]
    turns = passes if sum(sizes) > budget else 1
    start, windows = 0, []
    while start < len(order):
        members = {order[start]}
        # The window ends where each of its members has come `turns` times.
        end = start + 1
        while end < len(order) and (end - start) != turns * len(members):
            members.add(order[end])
            end += 1
        while turns == 1 and end < len(order):  # one pass: cannot be told apart, take greedily
            if sum(sizes[i] for i in members) + sizes[order[end]] > budget:
                break
            members.add(order[end])
            end += 1
        windows.append(members)
        start = end
    for window in windows:
        assert sum(sizes[i] for i in window) <= budget or len(window) == 1


def test_a_sequence_larger_than_the_budget_has_a_window_of_its_own() -> None:
    order = [v.indices for v in first_epoch([5, 50, 5], 10, 8, 2)]
    assert order.count((1,)) == 2


@given(skip=st.integers(0, 40), budget=st.sampled_from([10, 1000]), seed=st.integers(0, 5))
def test_resuming_is_skipping(skip: int, budget: int, seed: int) -> None:
    sizes = [3, 4, 2, 5, 3, 3, 4]
    whole = list(islice(visits(sizes, budget, 2, 2, seed), skip + 9))
    assert list(islice(visits(sizes, budget, 2, 2, seed), skip, skip + 9)) == whole[skip:]


def test_epochs_and_seeds_give_other_orders_and_epochs_are_numbered_on() -> None:
    sizes = [1] * 12
    flat = list(islice(visits(sizes, 100, 12, 3, 0), 3))
    assert len({v.indices for v in flat}) == 3
    assert [v.epoch for v in flat] == [0, 1, 2]
    assert next(visits(sizes, 100, 12, 3, 1)).indices != flat[0].indices


def test_passes_of_a_window_have_fresh_orders_and_numbers() -> None:
    found = list(islice(visits([1] * 8, 4, 4, 3, 0), 12))
    assert [v.epoch for v in found] == [0, 1, 2] * 2 + [3, 4, 5] * 2
    assert len({v.indices for v in found}) > 6
    assert all(set(a.indices) == set(b.indices) for a, b in pairwise(found[:3]))
    assert not set(found[0].indices) & set(found[3].indices)


def test_sequences_are_prompt_and_answer() -> None:
    prompt, answer = np.arange(3, dtype=np.int32), np.arange(7, 9, dtype=np.int32)
    response = Response("a", "math", prompt, answer, 1.0, True)
    states: Any = object()
    [sequence] = training_sequences([response], [states])
    assert sequence.key == response.key
    assert sequence.ids_T.tolist() == [0, 1, 2, 7, 8]
    assert sequence.states is states


@given(count=st.integers(0, 20), world=st.integers(1, 5), pieces=st.integers(1, 6))
def test_shares_hold_every_sequence_once(count: int, world: int, pieces: int) -> None:
    indices = tuple(range(100, 100 + count))
    shares = [share(indices, rank, world, pieces) for rank in range(world)]
    assert sorted(i for parts in shares for part in parts for i in part) == list(indices)
    sizes = [sum(map(len, parts)) for parts in shares]
    assert max(sizes) - min(sizes) <= 1
    for parts in shares:
        assert len(parts) <= pieces
        lengths = [len(part) for part in parts]
        assert not lengths or (min(lengths) > 0 and max(lengths) - min(lengths) <= 1)


def test_one_process_and_one_piece_are_the_step_itself() -> None:
    assert share((5, 2, 7), 0, 1, 1) == [(5, 2, 7)]
