"""Losslessness through the ordinary decode path: joint counts against the exact distribution.

Sequences of a seven-token language run through `Engine.generate`, 512 at a time, with a random
drafter of block size 4: under each rule of verification 80,000 with each of two ways to sample, and
40,000 with short blocks.
The counts of tokens 1 to 3, and of tokens 2 to 4 (all of them drafted), are compared with what
enumeration of the target alone gives. Ways to get verification wrong must be caught by the same
comparison.

Power: the mildest of those under the token rule, draft probabilities at another temperature, gives
p-values around 1e-13 with 16,000 sequences; the other two below 1e-29 with 4,000, whatever the
seed. A bias has to be 2.2 times smaller than the mildest to look the same to 80,000 sequences.
Under block verification a residual that forgets p_τ is milder: 1e-8 or so with 56,000.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from torch import Tensor

from dspark.core import BLOCK as BLOCK_RULE
from dspark.core import RULES, TOKEN, Batch, DraftBlock, DraftDecision, SamplingParams, Verdict
from dspark.engine import judging
from dspark.engine.engine import Engine
from dspark.engine.policies import Policy
from dspark.engine.policy_names import parse_policy
from dspark.engine.stats import accept_by_position, accepted_length
from dspark.maths import block_verification, verification
from dspark.maths.block_verification import verify_block
from exact import BLOCK, CUT, LENGTH, PLAIN, PROMPT, SLOTS, SMALL, STOP, Text, p_values
from scripted import TableTarget, random_drafter

SEQUENCES = 80_000


@dataclass
class Run:
    """What a run of many sequences said, and how its drafts fared."""

    texts: Counter[Text]
    accepted_length: float
    accept: list[float]  # by position


def answer(
    params: SamplingParams,
    reduced: bool,
    count: int,
    batch: int = 4_000,
    policy: Policy | None = None,
    rule: str = TOKEN,
) -> Run:
    target = TableTarget(stop_ids=[STOP])
    drafter = random_drafter(
        target, BLOCK, vocabulary=SMALL if reduced else None, gain=20.0, seed=1
    )
    policy = policy or parse_policy(f"fixed:{BLOCK}", BLOCK)
    engine = Engine(target, drafter, policy, slots=SLOTS, seed=11, verification=rule)
    texts: Counter[Text] = Counter()
    for _ in range(count // batch):
        requests = engine.generate([PROMPT] * batch, params)
        texts.update(tuple(request.output_ids) for request in requests)
    assert engine.stats.steps < count / 64, "sequences must run many at a time"
    return Run(texts, accepted_length(requests), accept_by_position(requests))


# Each choice is met on and off in a few runs; the other combinations are left to `make soak`.
@pytest.mark.parametrize(
    ("params", "reduced", "rule"),
    [
        pytest.param(PLAIN, False, BLOCK_RULE, id="plain-whole-block"),
        pytest.param(CUT, True, BLOCK_RULE, id="cut-reduced-block"),
        pytest.param(PLAIN, True, TOKEN, id="plain-reduced-token"),
        pytest.param(PLAIN, True, BLOCK_RULE, id="plain-reduced-block", marks=pytest.mark.soak),
        pytest.param(CUT, False, BLOCK_RULE, id="cut-whole-block", marks=pytest.mark.soak),
        pytest.param(PLAIN, False, TOKEN, id="plain-whole-token", marks=pytest.mark.soak),
        pytest.param(CUT, True, TOKEN, id="cut-reduced-token", marks=pytest.mark.soak),
        pytest.param(CUT, False, TOKEN, id="cut-whole-token", marks=pytest.mark.soak),
    ],
)
def test_joint_counts_follow_the_target(params: SamplingParams, reduced: bool, rule: str) -> None:
    run = answer(params, reduced, SEQUENCES, rule=rule)
    # The test has power only if drafts are both accepted and rejected, at several slots.
    assert 1.3 < run.accepted_length < 2.5
    assert all(0.2 < share < 0.8 for share in run.accept[: LENGTH - 1])
    assert min(p_values(run.texts, params)) > 1e-4


class Turns(Policy):
    """Blocks of 1, 2, … slots in turn, all of them verified."""

    name, draft_len, turn = "turns", BLOCK, 0

    def decide(self, batch: Batch) -> DraftDecision:
        self.turn += 1
        return DraftDecision(batch, 1 + self.turn % BLOCK)

    def lengths(self, decision: DraftDecision, drafts: DraftBlock) -> Sequence[int]:
        return [decision.slots] * len(decision.batch.decode)


@pytest.mark.parametrize("rule", [BLOCK_RULE, pytest.param(TOKEN, marks=pytest.mark.soak)])
def test_short_blocks_follow_the_target(rule: str) -> None:
    run = answer(PLAIN, False, 40_000, policy=Turns(), rule=rule)
    assert all(0.2 < share < 0.8 for share in run.accept[: LENGTH - 1])
    assert min(p_values(run.texts, PLAIN)) > 1e-4


Broken = Callable[[pytest.MonkeyPatch], None]


def accept_always(patch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Verdict:
        target, draft, ids, lengths, accept_u, final_u, d2t = args
        return verification.verify(target, draft, ids, lengths, 0 * accept_u, final_u, d2t)

    patch.setattr(judging, "verify", broken)


def accept_always_as_a_block(patch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Verdict:
        target, draft, ids, lengths, accept_u, final_u, d2t = args
        return verify_block(target, draft, ids, lengths, 0 * accept_u, final_u, d2t)

    patch.setattr(judging, "verify_block", broken)


def residual_from_target(patch: pytest.MonkeyPatch) -> None:
    for module in (verification, block_verification):
        patch.setattr(module, "residual", lambda target_SV, draft_SV, d2t: target_SV)


def residual_of_the_token_rule(patch: pytest.MonkeyPatch) -> None:
    """max(P - Q, 0) after the τ of block verification."""
    real = block_verification.residual

    def broken(scaled_SV: Tensor, draft_SV: Tensor, d2t: Tensor | None) -> Tensor:
        return real(scaled_SV / scaled_SV.sum(-1, keepdim=True), draft_SV, d2t)

    patch.setattr(block_verification, "residual", broken)


def nothing_left_behind(patch: pytest.MonkeyPatch) -> None:
    """h_i as if nothing were left of P where the draft goes on."""
    patch.setattr(block_verification, "_mass_left", lambda kept_S, *_: 0 * kept_S)


def wrong_draft_temperature(patch: pytest.MonkeyPatch) -> None:
    def broken(rule: str, *args: Any) -> Verdict:
        target, draft, *rest = args
        draft = draft**0.7
        return real[rule](target, draft / draft.sum(-1, keepdim=True), *rest)

    real = {TOKEN: verification.verify, BLOCK_RULE: block_verification.verify_block}
    for rule, name in ((TOKEN, "verify"), (BLOCK_RULE, "verify_block")):
        patch.setattr(judging, name, partial(broken, rule))


@pytest.mark.parametrize(
    ("damage", "rule", "count", "reduced"),
    [
        (accept_always, TOKEN, 4_000, False),
        (accept_always, TOKEN, 4_000, True),
        (residual_from_target, TOKEN, 4_000, False),
        (residual_from_target, TOKEN, 4_000, True),
        (wrong_draft_temperature, TOKEN, 16_000, False),
        (wrong_draft_temperature, TOKEN, 16_000, True),
        (accept_always_as_a_block, BLOCK_RULE, 4_000, False),
        (accept_always_as_a_block, BLOCK_RULE, 4_000, True),
        (residual_from_target, BLOCK_RULE, 4_000, False),
        (residual_from_target, BLOCK_RULE, 4_000, True),
        (wrong_draft_temperature, BLOCK_RULE, 16_000, False),
        (nothing_left_behind, BLOCK_RULE, 16_000, False),
        (residual_of_the_token_rule, BLOCK_RULE, 56_000, False),
    ],
)
def test_broken_verification_is_caught(
    damage: Broken, rule: str, count: int, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    assert min(p_values(answer(PLAIN, reduced, count, rule=rule).texts, PLAIN)) < 1e-4


def test_a_block_holds_longer_at_equal_rows() -> None:
    lengths = [answer(PLAIN, False, 8_000, rule=rule).accepted_length for rule in RULES]
    token, block = (dict(zip(RULES, lengths, strict=True))[rule] for rule in (TOKEN, BLOCK_RULE))
    assert block > 1.01 * token


WAYS = (PLAIN, CUT, replace(PLAIN, temperature=0.0), replace(PLAIN, temperature=0.6))


@pytest.mark.parametrize("rule", [BLOCK_RULE, pytest.param(TOKEN, marks=pytest.mark.soak)])
def test_ways_of_sampling_side_by_side_follow_the_target_each(rule: str) -> None:
    target = TableTarget(stop_ids=[STOP])
    drafter = random_drafter(target, BLOCK, vocabulary=SMALL, gain=20.0, seed=1)
    engine = Engine(target, drafter, f"fixed:{BLOCK}", slots=SLOTS, seed=11, verification=rule)
    texts: list[Counter[Text]] = [Counter() for _ in WAYS]
    for _ in range(5):
        requests = [engine.submit(PROMPT, way) for _ in range(1_000) for way in WAYS]
        while engine.step():
            pass
        for place, request in enumerate(requests):
            texts[place % len(WAYS)][tuple(request.output_ids)] += 1
    for way, counts in zip(WAYS, texts, strict=True):
        if way.temperature:
            assert min(p_values(counts, way)) > 1e-4
        else:
            [plain] = Engine(target, policy="off").generate([PROMPT], way)
            assert list(counts) == [tuple(plain.output_ids)]
