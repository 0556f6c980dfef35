"""Plain decoding in fixed slots says what the engine says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dspark.core import Request, SamplingParams
from dspark.engine.engine import Engine
from dspark.errors import EngineError, RequestError
from dspark.regeneration.graph_decoder import suits
from dspark.regeneration.plain_batch import PlainBatch, choose
from dspark.targets.target import LeanTarget, load_target
from fakes import tiny_target_folder

KINDS = ((0.0, 1.0), (0.6, 0.95), (1.0, 1.0), (1.3, 0.5))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> LeanTarget:
    folder = tiny_target_folder(tmp_path_factory.mktemp("target"), temper=1.0)
    target = load_target(folder, "float32")
    assert suits(target)
    return target


def asked(count: int, seed: int = 0) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of many lengths; answers of up to 30 tokens."""
    lengths = [1 + 7 * n % 23 for n in range(count)]
    return [
        (
            [(11 * n + i) % 150 + 5 for i in range(length)],
            _params(n, 2**62 + 100 * seed + n),
        )
        for n, length in enumerate(lengths)
    ]


def _params(n: int, seed: int) -> SamplingParams:
    temperature, top_p = KINDS[n % len(KINDS)]
    return SamplingParams(
        temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=1 + n % 30
    )


def said(batch: PlainBatch | Engine, seed: int = 0) -> list[Request]:
    requests = [batch.submit(ids, params) for ids, params in asked(60, seed)]
    steps = 0
    while any(request.finish is None for request in requests):
        batch.step()
        steps += 1
        assert steps < 2000
    return requests


@pytest.mark.parametrize(("slots", "prefill_rows"), [(1, 512), (5, 30), (40, 512), (100, 512)])
def test_as_the_engine(target: LeanTarget, slots: int, prefill_rows: int) -> None:
    """Texts and their ends, whatever the number of slots and the size of a pass."""
    batch = PlainBatch(target, slots, 64, prefill_rows)
    pairs = list(zip(said(batch), said(Engine(target, slots=8, max_len=64)), strict=True))
    assert not batch
    for ours, theirs in pairs:
        assert ours.output_ids == theirs.output_ids
        assert ours.finish is theirs.finish
    assert len({ours.finish for ours, _ in pairs}) == 2, "stops and limits are both met"


def test_another_seed_says_something_else(target: LeanTarget) -> None:
    one, other = said(PlainBatch(target, 8, 64)), said(PlainBatch(target, 8, 64), seed=1)
    for a, b in zip(one, other, strict=True):
        assert a.params.temperature > 0 or a.output_ids == b.output_ids
    assert sum(a.output_ids != b.output_ids for a, b in zip(one, other, strict=True)) > 30


def test_room_ends_an_answer(target: LeanTarget) -> None:
    batch = PlainBatch(target, 2, 12)
    params = SamplingParams(temperature=1.0, seed=8, max_new_tokens=50)
    request = batch.submit([9] * 8, params)
    while batch:
        batch.step()
    [theirs] = Engine(target, slots=1, max_len=12).generate([[9] * 8], params)
    assert (request.output_ids, request.finish) == (theirs.output_ids, theirs.finish)


def test_what_comes_while_the_device_works_is_answered(target: LeanTarget) -> None:
    batch, late = PlainBatch(target, 2, 64), asked(9)
    first = batch.submit(*late.pop())
    answered, drawn = [], 0

    def more() -> None:
        if late:
            batch.submit(*late.pop())

    while batch:
        count, finished = batch.step(more)
        answered += finished
        drawn += count
    assert len(answered) == 9
    assert first in answered
    assert drawn == sum(len(request.output_ids) for request in answered)


def test_prompts_that_do_not_fit(target: LeanTarget) -> None:
    batch, params = PlainBatch(target, 2, 16), SamplingParams(seed=0)
    for ids in ([], [7] * 16, [7, 160], [-1]):
        with pytest.raises(RequestError):
            batch.submit(ids, params)
    assert not batch


def test_logits_without_a_largest_one() -> None:
    fine, greedy = np.zeros(2), np.zeros(2, dtype=np.float32)
    for temperature in (greedy, greedy + 1):
        with pytest.raises(EngineError):
            choose(torch.full((2, 9), torch.nan), np.arange(2), temperature, fine + 1, fine)


def test_chosen_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a part changes nothing, and each row keeps its own parameters."""
    from dspark.regeneration import plain_batch

    draws = np.random.default_rng(0)
    logits = torch.from_numpy(draws.normal(size=(40, 30)))
    temperature = np.array([kind[0] for kind in KINDS] * 5, dtype=np.float32)
    top_p = np.array([kind[1] for kind in KINDS] * 5)
    u, rows = draws.random(20), draws.permutation(40)[:20]
    whole = choose(logits, rows, temperature, top_p, u)
    monkeypatch.setattr(plain_batch, "_CHUNK", 70)
    assert (choose(logits, rows, temperature, top_p, u) == whole).all()
    greedy = temperature == 0
    assert (whole[greedy] == logits.numpy()[rows[greedy]].argmax(-1)).all()
    assert (whole != logits.numpy()[rows].argmax(-1)).any()
