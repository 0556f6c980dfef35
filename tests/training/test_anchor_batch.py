"""Training batches of block drafters against a direct computation, position by position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dspark.data.states import SequenceStates
from dspark.drafters.block.batch import AnchorBatch
from dspark.training.anchor_batch import make_anchor_batch
from dspark.training.position_batch import make_position_batch
from dspark.training.sequences import AnchorDraw, TrainingSequence

D, M = 3, 5


def sequence(
    name: str, prompt: int, answer: int, first_id: int = 10, tag: float = 0.0
) -> TrainingSequence:
    """States tell their position: tap t holds t, last state and normaliser of t hold t too."""
    ids = np.arange(first_id, first_id + prompt + answer)
    place = tag + torch.arange(len(ids), dtype=torch.float32)
    states = SequenceStates(
        place[:, None].expand(-1, M).clone(),
        place[prompt:, None].expand(-1, D).clone(),
        place[prompt:],
        prompt,
    )
    return TrainingSequence(name, ids, states)


def batch_of(
    sequences: list[TrainingSequence],
    *,
    anchors: int = 4,
    block: int = 5,
    epoch: int = 0,
    seed: int = 0,
) -> AnchorBatch | None:
    return make_anchor_batch(sequences, AnchorDraw(anchors, seed, epoch), block)


@pytest.mark.parametrize("anchors", [1, 4, 100])
@pytest.mark.parametrize("block", [1, 3, 8])
def test_labels_and_teacher_rows_position_by_position(anchors: int, block: int) -> None:
    sequences = [
        sequence("a", 4, 12),
        sequence("b", 1, 2, 50, 1000.0),
        sequence("c", 7, 30, 100, 2000.0),
    ]
    batch = batch_of(sequences, anchors=anchors, block=block)
    assert batch is not None
    assert batch.lengths == [len(s.ids_T) for s in sequences]
    row = 0
    for number, (s, places) in enumerate(zip(sequences, batch.anchors, strict=True)):
        ids, first, tag = s.ids_T.tolist(), s.states.first, 1000.0 * number
        assert places.tolist() == sorted(set(places.tolist()))
        assert len(places) == min(anchors, len(ids) - first - 1)
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
    assert torch.equal(batch.taps_TM, torch.cat([s.states.taps_TM for s in sequences]))


def test_a_batch_depends_on_seed_epoch_and_key_alone() -> None:
    a, b = sequence("a", 4, 40), sequence("b", 4, 40)
    alone, together, swapped = batch_of([b]), batch_of([a, b]), batch_of([b, a])
    assert alone is not None
    assert together is not None
    assert swapped is not None
    assert torch.equal(alone.anchors[0], together.anchors[1])
    assert torch.equal(alone.anchors[0], swapped.anchors[0])
    count = len(alone.anchors[0])
    assert torch.equal(alone.draws_AK, together.draws_AK[count:])
    assert torch.equal(alone.draws_AK, swapped.draws_AK[:count])
    assert not torch.equal(together.draws_AK[:count], alone.draws_AK)
    assert alone.draws_AK.shape == alone.labels_AK.shape
    assert 0 <= float(alone.draws_AK.min()) < 0.2 < 0.8 < float(alone.draws_AK.max()) < 1
    assert not torch.equal(together.anchors[0], together.anchors[1])
    for other in (batch_of([b], epoch=1), batch_of([b], seed=1), batch_of([sequence("c", 4, 40)])):
        assert other is not None
        assert not torch.equal(alone.anchors[0], other.anchors[0])


def test_answers_without_room_give_nothing() -> None:
    short, long = sequence("s", 4, 1), sequence("l", 4, 6, tag=1000.0)
    assert batch_of([short]) is None
    assert batch_of([short, short]) is None
    mixed = batch_of([short, long])
    assert mixed is not None
    assert mixed.lengths == [len(long.ids_T)]
    assert float(mixed.taps_TM[0, 0]) == 1000.0


def test_only_answers_of_a_conversation_are_learned() -> None:
    """Anchors lie in answers with a token of the same answer behind; labels end with the answer."""
    given = sequence("a", 3, 14)  # tokens 10 to 26, answers from position 3 on
    talk = replace(given, context=((4, 6), (9, 12)))
    answers = [{3, 4, 5, 6}, {9, 10, 11}, {15, 16}]
    assert set(np.flatnonzero(talk.loss_mask)) == set().union(*answers)
    batch = batch_of([talk], anchors=100, block=3)
    assert batch is not None
    assert batch.anchors[0].tolist() == [3, 4, 5, 9, 10, 15]
    for row, place in enumerate(batch.anchors[0].tolist()):
        own = next(answer for answer in answers if place in answer)
        for k in range(1, 4):
            valid = place + k in own
            assert bool(batch.label_valid_AK[row, k - 1]) is valid
            assert int(batch.labels_AK[row, k - 1]) == (10 + place + k if valid else 0)
            if valid:
                assert float(batch.log_norm_N[row * 3 + k - 1]) == place + k - 1


def test_chains_learn_the_same_tokens() -> None:
    given = sequence("a", 3, 14)
    talk = replace(given, context=((4, 6), (9, 12)))
    answers = [{3, 4, 5, 6}, {9, 10, 11}, {15, 16}]
    batch = make_position_batch([talk], AnchorDraw(1, 0, 0), 3)
    assert batch is not None
    for row, place in zip(batch.label_valid_AK, batch.rows_Q.tolist(), strict=True):
        own = next((answer for answer in answers if place + 1 in answer), set())
        assert row.tolist() == [place + 2 + j in own for j in range(3)]
    whole = make_position_batch([given], AnchorDraw(1, 0, 0), 3)
    assert whole is not None
    assert whole.label_valid_AK[0].all()
    assert int(whole.label_valid_AK.sum()) > int(batch.label_valid_AK.sum())
