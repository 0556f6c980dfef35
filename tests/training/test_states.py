"""Target states for training: right, within the budget, and the same when computed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dspark.data.responses import Response, load_responses
from dspark.data.states import SequenceStates
from dspark.targets.target import Target, load_target
from dspark.training.states import StateCache, bytes_per_sequence
from fakes import tiny_target_folder

TAPS = (1, 3, 5)


@pytest.fixture(scope="module")
def responses(home: Path) -> list[Response]:
    return load_responses([home / "answers.jsonl"])


def whole(r: Response) -> list[int]:
    return [*r.prompt_ids.tolist(), *r.response_ids.tolist()]


def check(target: Target, r: Response, states: SequenceStates) -> None:
    last, taps = target.states([whole(r)], TAPS)
    first = len(r.prompt_ids)
    assert states.first == first
    torch.testing.assert_close(states.taps_TM, taps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states.last_TD, last[first:], atol=1e-5, rtol=1e-5)
    full = target.logits(last[first:]).float().logsumexp(-1)
    torch.testing.assert_close(states.log_norm_T, full, atol=1e-5, rtol=1e-5)
    assert states.log_norm_T.dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_values_are_the_targets(
    tmp_path: Path, target: Target, responses: list[Response], family: str
) -> None:
    if family != "llama":
        folder = tiny_target_folder(tmp_path / "t", family, softcap=3.0)
        target = load_target(folder, "float32")
    chosen = responses[:5]
    for r, states in zip(chosen, StateCache(target, TAPS, 10**9).get(chosen), strict=True):
        check(target, r, states)


def test_states_lie_in_memory_of_their_own(target: Target, responses: list[Response]) -> None:
    """Not on the heap, where tensors of all sizes that come and go leave holes."""
    for states in StateCache(target, TAPS, 10**9).get(responses[:3]):
        for tensor in (states.taps_TM, states.last_TD):
            assert not tensor.untyped_storage().resizable()
    bare = StateCache(target, (), 0).get(responses[:1])[0]
    assert bare.nbytes == bare.taps_TM.numel() * bare.taps_TM.element_size()


def test_without_taps_the_last_states_stand_for_them(
    target: Target, responses: list[Response]
) -> None:
    cache = StateCache(target, (), 10**9)
    for r, states in zip(responses[:3], cache.get(responses[:3]), strict=True):
        last, _ = target.states([whole(r)], TAPS)
        torch.testing.assert_close(states.taps_TM, last, atol=1e-5, rtol=1e-5)
        assert torch.equal(states.last_TD, states.taps_TM[states.first :])
    assert cache.held == sum(bytes_per_sequence(r, target, 0) for r in responses[:3])


def test_long_answers_are_normed_in_parts(target: Target) -> None:
    prompt, answer = np.arange(6, 9, dtype=np.int32), np.arange(6, 150, dtype=np.int32)
    long = Response("long", "math", prompt, answer, 1.0, True)
    check(target, long, StateCache(target, TAPS, 0).get([long])[0])


def test_stays_within_the_budget_and_drops_the_least_recently_used(
    target: Target, responses: list[Response]
) -> None:
    sizes = [bytes_per_sequence(r, target, len(TAPS)) for r in responses]
    cache = StateCache(target, TAPS, sum(sizes[:4]))
    for start in range(0, 12, 2):
        cache.get(responses[start : start + 2])
        kept = list(cache._kept.values())
        assert cache.held == sum(s.nbytes for s in kept) <= cache.budget
    cache = StateCache(target, TAPS, sum(sizes[:3]) + min(sizes[3:]) - 1)
    cache.get(responses[:3])
    cache.get([responses[0]])
    cache.get([responses[3]])
    assert responses[0].key in cache._kept
    assert responses[1].key not in cache._kept


def test_sizes_are_known_beforehand(target: Target, responses: list[Response]) -> None:
    for r, states in zip(
        responses[:6], StateCache(target, TAPS, 0).get(responses[:6]), strict=True
    ):
        assert states.nbytes == bytes_per_sequence(r, target, len(TAPS))


def test_what_fits_is_computed_once(target: Target, responses: list[Response]) -> None:
    cache = StateCache(target, TAPS, 10**9)
    once = cache.get(responses[:6])
    tokens = cache.computed_tokens
    assert tokens == sum(len(r) for r in responses[:6])
    again = cache.get([responses[4], responses[1]])
    assert cache.computed_tokens == tokens
    assert again[0] is once[4]
    assert again[1] is once[1]


def test_a_budget_of_nothing_still_serves(target: Target, responses: list[Response]) -> None:
    cache = StateCache(target, TAPS, 0)
    first, second = cache.get(responses[:3]), cache.get(responses[:3])
    assert cache.held == 0
    assert not cache._kept
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.taps_TM, b.taps_TM)
        assert torch.equal(a.last_TD, b.last_TD)
        assert torch.equal(a.log_norm_T, b.log_norm_T)


def test_company_does_not_matter(target: Target, responses: list[Response]) -> None:
    cache = StateCache(target, TAPS, 0)
    together, alone = cache.get(responses[:7])[3], cache.get([responses[3]])[0]
    torch.testing.assert_close(together.taps_TM, alone.taps_TM, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.last_TD, alone.last_TD, atol=1e-5, rtol=1e-5)


def test_one_sequence_twice_in_a_request(target: Target, responses: list[Response]) -> None:
    cache = StateCache(target, TAPS, 10**9)
    a, b = cache.get([responses[0], responses[0]])
    assert torch.equal(a.taps_TM, b.taps_TM)
    assert cache.held == a.nbytes
