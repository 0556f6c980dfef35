"""The order of sequences, and the batches made of them, against a direct computation."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dspark.data.responses import Response
from dspark.models.dspark import AnchorBatch
from dspark.training.batches import Visit, make_batch, visits
from dspark.training.states import SequenceStates

D, M = 3, 5


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


# ---------------------------------------------------------------------------------------- batches


def response(name: str, prompt: int, answer: int, first_id: int = 10) -> Response:
    ids = np.arange(first_id, first_id + prompt + answer, dtype=np.int32)
    return Response(name, "math", ids[:prompt], ids[prompt:], 1.0, True)


def states(r: Response, tag: float = 0.0) -> SequenceStates:
    """Rows that tell their position: tap t holds t, last state and normaliser of t hold t too."""
    place = torch.arange(len(r), dtype=torch.float32)
    first = len(r.prompt_ids)
    return SequenceStates(
        (tag + place)[:, None].expand(-1, M).clone(),
        (tag + place[first:])[:, None].expand(-1, D).clone(),
        tag + place[first:],
        first,
    )


def batch_of(
    responses: list[Response], *, anchors: int = 4, block: int = 5, epoch: int = 0, seed: int = 0
) -> AnchorBatch | None:
    tagged = [states(r, 1000.0 * n) for n, r in enumerate(responses)]
    return make_batch(
        responses, tagged, anchors_per_sequence=anchors, block_size=block, seed=seed, epoch=epoch
    )


@pytest.mark.parametrize("anchors", [1, 4, 100])
@pytest.mark.parametrize("block", [1, 3, 8])
def test_labels_and_teacher_rows_position_by_position(anchors: int, block: int) -> None:
    responses = [response("a", 4, 12), response("b", 1, 2, 50), response("c", 7, 30, 100)]
    batch = batch_of(responses, anchors=anchors, block=block)
    assert batch is not None
    assert batch.lengths == [len(r) for r in responses]
    row = 0
    for number, (r, places) in enumerate(zip(responses, batch.anchors, strict=True)):
        ids = [*r.prompt_ids.tolist(), *r.response_ids.tolist()]
        first, tag = len(r.prompt_ids), 1000.0 * number
        assert places.tolist() == sorted(set(places.tolist()))
        assert len(places) == min(anchors, len(r.response_ids) - 1)
        for place in places.tolist():
            assert first <= place < len(ids) - 1  # the anchor and its label lie in the answer
            assert int(batch.anchor_ids_A[row]) == ids[place]
            for k in range(1, block + 1):  # slot k predicts place + k from the state before it
                exists = place + k < len(ids)
                assert bool(batch.label_valid_AK[row, k - 1]) is exists
                assert int(batch.labels_AK[row, k - 1]) == (ids[place + k] if exists else 0)
                if exists:
                    flat = row * block + k - 1
                    assert batch.last_ND[flat].tolist() == [tag + place + k - 1] * D
                    assert float(batch.log_norm_N[flat]) == tag + place + k - 1
            row += 1
    assert row == len(batch.anchor_ids_A)
    assert len(batch.last_ND) == len(batch.log_norm_N) == row * block
    whole = torch.cat([states(r, 1000.0 * n).taps_TM for n, r in enumerate(responses)])
    assert torch.equal(batch.taps_TM, whole)


def test_a_batch_depends_on_seed_epoch_and_key_alone() -> None:
    a, b = response("a", 4, 40), response("b", 4, 40)
    alone, together, swapped = batch_of([b]), batch_of([a, b]), batch_of([b, a])
    assert alone is not None
    assert together is not None
    assert swapped is not None
    assert torch.equal(alone.anchors[0], together.anchors[1])
    assert torch.equal(alone.anchors[0], swapped.anchors[0])
    assert not torch.equal(together.anchors[0], together.anchors[1])
    for other in (batch_of([b], epoch=1), batch_of([b], seed=1), batch_of([response("c", 4, 40)])):
        assert other is not None
        assert not torch.equal(alone.anchors[0], other.anchors[0])


def test_answers_without_room_give_nothing() -> None:
    short, long = response("s", 4, 1), response("l", 4, 6)
    assert batch_of([short]) is None
    assert batch_of([short, short]) is None
    mixed = batch_of([short, long])
    assert mixed is not None
    assert mixed.lengths == [len(long)]
    assert float(mixed.taps_TM[0, 0]) == 1000.0
