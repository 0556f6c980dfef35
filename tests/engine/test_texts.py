"""Texts of tiny models: the same with and without drafts, alone and in company."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dspark.core import Batch, DraftDecision, FinishReason, SamplingParams, TokenKind
from dspark.drafters.drafter import Drafter
from dspark.engine import stats
from dspark.engine.engine import Engine
from dspark.engine.policies import Fixed
from dspark.targets.target import Target
from fakes import FAMILIES
from scripted import ScriptedDrafter, answer, random_drafter, texts, whole_blocks

PROMPTS = [[1, 20, 30], [9], list(range(40, 65)), [50, 51] * 6, [7, 8, 9, 10, 11]]
GREEDY = SamplingParams(max_new_tokens=30)
SAMPLED = SamplingParams(temperature=1.0, top_k=40, top_p=0.95, max_new_tokens=30, seed=5)


# ---- greedy text is the target's own ----------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_greedy_is_hugging_face_s(family: str, folders: Any, targets: Any) -> None:
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32).eval()
    for prompt, mine in zip(PROMPTS, answer(targets[family], None, PROMPTS, GREEDY), strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            whole = module.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30
            )
        assert mine == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("options", [{}, {"vocabulary": range(0, 160, 2)}], ids=["whole", "half"])
@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_do_not_change_greedy_text(family: str, options: Any, targets: Any) -> None:
    target = targets[family]
    plain = answer(target, None, PROMPTS, GREEDY)
    drafter = random_drafter(target, seed=3, **options)
    engine = Engine(target, drafter, whole_blocks(drafter), slots=2)
    requests = engine.generate(PROMPTS, GREEDY)
    assert texts(requests) == plain
    assert stats.verified_tokens(requests) > stats.wasted_tokens(requests) > 0


@pytest.mark.parametrize("policy", ["off", "fixed:1", "fixed:3", "fixed:5"])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_greedy_text_depends_on_neither_policy_nor_company(
    policy: str, slots: int, target: Target, drafter: Drafter
) -> None:
    plain = [answer(target, None, [prompt], GREEDY, slots=1)[0] for prompt in PROMPTS]
    assert answer(target, drafter, PROMPTS, GREEDY, slots=slots, policy=policy) == plain


def test_ragged_verify_lengths(target: Target, drafter: Drafter) -> None:
    class Ragged(Fixed):
        def lengths(self, decision: DraftDecision, drafts: Any) -> list[int]:
            size = self.draft_len + 1
            return [(r.id * 3 + r.round * 2) % size for r in decision.batch.decode]

    for params in (GREEDY, SAMPLED):
        engine = Engine(target, drafter, Ragged(5), slots=4)
        requests = engine.generate(PROMPTS, params)
        assert {r.verified for q in requests for r in q.rounds} == {0, 1, 2, 3, 4, 5}
        if params is GREEDY:
            assert texts(requests) == answer(target, None, PROMPTS, GREEDY)


def test_requests_that_are_not_drafted_move_along(target: Target, drafter: Drafter) -> None:
    """Any mixture of drafted and plain requests, prompts among them."""

    class Choosy(Fixed):
        def decide(self, batch: Batch) -> DraftDecision:
            return DraftDecision(batch.split([(r.id + r.round) % 3 > 0 for r in batch.decode]), 3)

    for params in (GREEDY, SAMPLED):
        requests = Engine(target, drafter, Choosy(3), slots=4).generate(PROMPTS, params)
        rounds = [record for request in requests for record in request.rounds]
        assert {record.drafted for record in rounds} == {0, 3}
        assert all(r.committed == 1 for r in rounds if not r.drafted)
        if params is GREEDY:
            assert texts(requests) == answer(target, None, PROMPTS, GREEDY)


def test_drafters_see_the_taps_of_plain_rounds_too(target: Target) -> None:
    class Never(Fixed):
        def decide(self, batch: Batch) -> DraftDecision:
            return DraftDecision(batch.split([r.round % 2 == 0 for r in batch.decode]), 5)

    scripted = ScriptedDrafter(target, truth(target))  # checks its context itself
    requests = Engine(target, scripted, Never(5)).generate(PROMPTS, GREEDY)
    assert texts(requests) == answer(target, None, PROMPTS, GREEDY)


# ---- what drafters are told, and what becomes of their drafts ----------------------------------


def truth(target: Target, params: SamplingParams = GREEDY) -> Any:
    """`say` of a drafter that knows the answers to PROMPTS, in slots by order."""
    whole = [
        [*prompt, *text]
        for prompt, text in zip(PROMPTS, answer(target, None, PROMPTS, params), strict=True)
    ]
    return lambda slot, position: whole[slot][position + 1 :]


def test_right_drafts_are_all_accepted(target: Target) -> None:
    params = SamplingParams(max_new_tokens=25)  # one token after the prompt, four rounds of six
    engine = Engine(target, ScriptedDrafter(target, truth(target)), "fixed:5")
    requests = engine.generate(PROMPTS, params)
    assert texts(requests) == answer(target, None, PROMPTS, params)
    assert stats.accepted_length(requests) == 6
    assert stats.accept_by_position(requests) == [1] * 5
    assert [len(request.rounds) for request in requests] == [4] * len(PROMPTS)
    assert stats.wasted_tokens(requests) == 0


def test_wrong_drafts_are_all_rejected(target: Target) -> None:
    say = truth(target)
    wrong = ScriptedDrafter(target, lambda slot, at: [(t + 1) % 160 for t in say(slot, at)])
    requests = Engine(target, wrong, whole_blocks(wrong)).generate(PROMPTS, GREEDY)
    assert texts(requests) == answer(target, None, PROMPTS, GREEDY)
    assert stats.accepted_length(requests) == 1
    assert stats.accept_by_position(requests)[0] == 0


def test_mixed_drafts_and_the_taps_that_follow_them(target: Target) -> None:
    say = truth(target)

    def sometimes(slot: int, at: int) -> list[int]:
        ids = say(slot, at)
        return [*ids[: at % 4], (ids[at % 4] + 1) % 160] if len(ids) > at % 4 else ids

    scripted = ScriptedDrafter(target, sometimes)
    requests = Engine(target, scripted, whole_blocks(scripted)).generate(PROMPTS, GREEDY)
    assert texts(requests) == answer(target, None, PROMPTS, GREEDY)
    for slot, request in enumerate(requests):
        text = [*request.prompt_ids, *request.output_ids]
        _, taps = target.states([text], scripted.config.target_layer_ids)
        mine = torch.stack([scripted.taps[slot][p] for p in range(len(text) - 1)])
        torch.testing.assert_close(mine, taps[: len(text) - 1], rtol=1e-4, atol=1e-4)


def test_kinds_of_tokens(target: Target) -> None:
    say = truth(target)
    scripted = ScriptedDrafter(target, lambda slot, at: [*say(slot, at)[:2], 159, 159, 159])
    kinds: list[TokenKind] = []
    engine = Engine(target, scripted, whole_blocks(scripted))
    params = SamplingParams(max_new_tokens=7)
    engine.generate(PROMPTS[:1], params, lambda out: [kinds.extend(o.kinds) for o in out])
    accepted, drawn = TokenKind.ACCEPTED, TokenKind.DRAWN
    assert kinds == [TokenKind.PLAIN, accepted, accepted, drawn, accepted, accepted, drawn]


def test_stop_inside_accepted_drafts(target: Target) -> None:
    seen = truth(target)(0, len(PROMPTS[0]) - 1)
    stop = next(t for i, t in enumerate(seen) if i > 2 and t not in seen[:i])
    before = target.stop_ids
    try:
        target.stop_ids = frozenset([stop])
        expected = seen[: seen.index(stop) + 1]
        for drafter in (None, ScriptedDrafter(target, lambda slot, at: truth_of(seen, at))):
            [request] = Engine(target, drafter, whole_blocks(drafter)).generate(PROMPTS[:1], GREEDY)
            assert (request.output_ids, request.finish) == (expected, FinishReason.STOP)
            assert request.rounds[-1].stopped
        last = request.rounds[-1]
        assert last.committed - last.accepted in (0, 1)
        go_on = SamplingParams(max_new_tokens=30, ignore_stop=True)
        assert answer(target, None, PROMPTS[:1], go_on) == [seen]
    finally:
        target.stop_ids = before


def truth_of(seen: list[int], at: int) -> list[int]:
    return seen[at + 1 - len(PROMPTS[0]) :]


@pytest.mark.parametrize("with_drafter", [False, True])
def test_length_limits(with_drafter: bool, target: Target, drafter: Drafter) -> None:
    used = drafter if with_drafter else None
    longest = answer(target, None, PROMPTS, GREEDY)
    for limit in (1, 2, 6, 7, 13):
        engine = Engine(target, used, whole_blocks(used), slots=2)
        requests = engine.generate(PROMPTS, SamplingParams(max_new_tokens=limit))
        assert texts(requests) == [text[:limit] for text in longest]
        assert {r.finish for r in requests} == {FinishReason.LENGTH}


@pytest.mark.parametrize("with_drafter", [False, True])
def test_the_end_of_the_context(with_drafter: bool, target: Target, drafter: Drafter) -> None:
    used = drafter if with_drafter else None
    engine = Engine(target, used, whole_blocks(used), slots=2, max_len=32)
    requests = engine.generate(PROMPTS, SamplingParams(max_new_tokens=500))
    assert [len(r.prompt_ids) + len(r.output_ids) for r in requests] == [32] * len(PROMPTS)
    whole = answer(target, None, PROMPTS, SamplingParams(max_new_tokens=31))
    assert texts(requests) == [t[: 32 - len(p)] for p, t in zip(PROMPTS, whole, strict=True)]
    assert Engine(target, slots=1, max_len=10**6).max_len == target.max_positions


# ---- sampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_drafter", [False, True])
def test_a_seed_makes_its_text_whatever_the_company(
    with_drafter: bool, target: Target, drafter: Drafter
) -> None:
    used = drafter if with_drafter else None
    alone = [answer(target, used, [prompt], SAMPLED, slots=1)[0] for prompt in PROMPTS]
    for slots, seed in ((2, 0), (5, 9)):
        assert answer(target, used, PROMPTS, SAMPLED, slots=slots, seed=seed) == alone
    engine = Engine(target, used, whole_blocks(used), slots=3)
    company = [engine.submit([3, 4], SamplingParams(temperature=t)) for t in (0.0, 0.8, 2.0)]
    mine = [engine.submit(prompt, SAMPLED) for prompt in PROMPTS]
    greedy = engine.submit(PROMPTS[0], GREEDY)
    while any(request.finish is None for request in [*mine, *company, greedy]):
        engine.step()
    assert texts(mine) == alone
    assert [greedy.output_ids] == answer(target, None, PROMPTS[:1], GREEDY)


def test_samples_and_requests_draw_for_themselves(target: Target, drafter: Drafter) -> None:
    engine = Engine(target, drafter, whole_blocks(drafter), slots=8)
    free = SamplingParams(temperature=1.5, max_new_tokens=12)
    unseeded = engine.generate([PROMPTS[0]] * 4, free)
    fixed = SamplingParams(temperature=1.5, max_new_tokens=12, seed=0)
    samples = [engine.submit(PROMPTS[0], fixed, sample=i) for i in range(4)]
    while engine.step():
        pass
    different = {tuple(text) for text in texts([*unseeded, *samples])}
    assert len(different) == 8
    again = Engine(target, drafter, whole_blocks(drafter), slots=8).generate([PROMPTS[0]] * 4, free)
    assert texts(again) == texts(unseeded)
    other = Engine(target, drafter, whole_blocks(drafter), slots=8, seed=1).generate(
        [PROMPTS[0]] * 4, free
    )
    assert texts(other) != texts(unseeded)


def test_a_longer_limit_continues_the_same_text(target: Target, drafter: Drafter) -> None:
    short = SamplingParams(temperature=1.0, seed=3, max_new_tokens=9)
    long = SamplingParams(temperature=1.0, seed=3, max_new_tokens=30)
    [a], [b] = (answer(target, drafter, PROMPTS[:1], params) for params in (short, long))
    assert b[:9] == a
