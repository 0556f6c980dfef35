"""Losslessness through the ordinary decode path: joint counts against the exact distribution.

200,000 sequences of a seven-token language run through `Engine.generate`, 512 at a time, with a
random drafter of block size 4: 80,000 with each of two ways to sample, 40,000 with short blocks.
The counts of tokens 1 to 3, and of tokens 2 to 4 (all of them drafted), are compared with what
enumeration of the target alone gives. Three ways to get verification wrong must be caught by the
same comparison.

Power: the mildest of the three, draft probabilities at another temperature, gives p-values around
1e-13 with 16,000 sequences; the other two below 1e-29 with 4,000, whatever the seed. A bias has to
be 2.2 times smaller than the mildest to look the same to 80,000 sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from dspark.core import Batch, DraftBlock, SamplingParams, Verdict
from dspark.engine import judging
from dspark.engine.engine import Engine
from dspark.engine.policies import Policy
from dspark.engine.stats import accept_by_position, accepted_length
from dspark.maths import verification
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
) -> Run:
    target = TableTarget(stop_ids=[STOP])
    drafter = random_drafter(
        target, BLOCK, vocabulary=SMALL if reduced else None, gain=20.0, seed=1
    )
    engine = Engine(target, drafter, policy or f"fixed:{BLOCK}", slots=SLOTS, seed=11)
    texts: Counter[Text] = Counter()
    for _ in range(count // batch):
        requests = engine.generate([PROMPT] * batch, params)
        texts.update(tuple(request.output_ids) for request in requests)
    assert engine.stats.steps < count / 64, "sequences must run many at a time"
    return Run(texts, accepted_length(requests), accept_by_position(requests))


# Each choice is met on and off in two runs; the other two pairs are left to `make soak`.
@pytest.mark.parametrize(
    ("params", "reduced"),
    [
        pytest.param(PLAIN, False, id="plain-whole-vocabulary"),
        pytest.param(CUT, True, id="top-k-top-p-reduced-vocabulary"),
        pytest.param(PLAIN, True, id="plain-reduced-vocabulary", marks=pytest.mark.soak),
        pytest.param(CUT, False, id="top-k-top-p-whole-vocabulary", marks=pytest.mark.soak),
    ],
)
def test_joint_counts_follow_the_target(params: SamplingParams, reduced: bool) -> None:
    run = answer(params, reduced, SEQUENCES)
    # The test has power only if drafts are both accepted and rejected, at several slots.
    assert 1.3 < run.accepted_length < 2.5
    assert all(0.2 < share < 0.8 for share in run.accept[: LENGTH - 1])
    assert min(p_values(run.texts, params)) > 1e-4


class Turns(Policy):
    """Blocks of 1, 2, … slots in turn, all of them verified."""

    name, draft_len, turn = "turns", BLOCK, 0

    def steps(self, batch: Batch) -> int:
        self.turn += 1
        return 1 + self.turn % BLOCK

    def plan(self, batch: Batch, drafts: DraftBlock) -> Sequence[int]:
        return [drafts.draft_ids_RK.shape[1]] * len(batch.decode)


def test_short_blocks_follow_the_target() -> None:
    run = answer(PLAIN, False, 40_000, policy=Turns())
    assert all(0.2 < share < 0.8 for share in run.accept[: LENGTH - 1])
    assert min(p_values(run.texts, PLAIN)) > 1e-4


Broken = Callable[[pytest.MonkeyPatch], None]


def accept_always(patch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Verdict:
        target, draft, ids, lengths, accept_u, final_u, d2t = args
        return verification.verify(target, draft, ids, lengths, 0 * accept_u, final_u, d2t)

    patch.setattr(judging, "verify", broken)


def residual_from_target(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification, "_residual", lambda target_SV, draft_SV, d2t: target_SV)


def wrong_draft_temperature(patch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Verdict:
        target, draft, *rest = args
        draft = draft**0.7
        return verification.verify(target, draft / draft.sum(-1, keepdim=True), *rest)

    patch.setattr(judging, "verify", broken)


@pytest.mark.parametrize("reduced", [False, True], ids=["whole-vocabulary", "reduced-vocabulary"])
@pytest.mark.parametrize(
    ("damage", "count"),
    [(accept_always, 4_000), (residual_from_target, 4_000), (wrong_draft_temperature, 16_000)],
)
def test_broken_verification_is_caught(
    damage: Broken, count: int, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    assert min(p_values(answer(PLAIN, reduced, count).texts, PLAIN)) < 1e-4
