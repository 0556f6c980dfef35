"""Losslessness through the ordinary decode path: joint counts against the exact distribution.

200,000 sequences of a seven-token language run through `Engine.generate`, 512 at a time, with a
random drafter of block size 4. The counts of tokens 1 to 3, and of tokens 2 to 4 (all of them
drafted), are compared with what enumeration of the target alone gives. Three ways to get
verification wrong must be caught by the same comparison.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from dspark.core import SamplingParams, Verdict
from dspark.engine import runner
from dspark.engine.engine import Engine
from dspark.engine.stats import accept_by_position, accepted_length
from dspark.maths import verification
from scripted import TableTarget, random_drafter

SEQUENCES, LENGTH, SLOTS, BLOCK = 200_000, 4, 512, 4
PROMPT = [3, 1]
STOP = 5
SMALL = (0, 1, 3, 5, 6)

PLAIN = SamplingParams(temperature=1.0, max_new_tokens=LENGTH)
CUT = SamplingParams(temperature=1.0, top_k=6, top_p=0.9, max_new_tokens=LENGTH)

Text = tuple[int, ...]


def next_token(target: TableTarget, text: list[int], params: SamplingParams) -> np.ndarray:
    """The target's distribution after `text`, computed the plain way in float64."""
    state = target.states_CD[target.context(text)]
    logits = target.logits(state[None])[0].double().numpy() / params.temperature
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if params.top_k:
        probs[order[params.top_k :]] = 0
        probs /= probs.sum()
    if params.top_p < 1:
        before = np.cumsum(probs[order]) - probs[order]
        probs[order[before >= params.top_p]] = 0
        probs /= probs.sum()
    return probs


def enumerate_texts(target: TableTarget, params: SamplingParams) -> dict[Text, float]:
    """Every text of LENGTH tokens (fewer after a stop token) with its probability."""
    texts: dict[Text, float] = {(): 1.0}
    for _ in range(LENGTH):
        longer: dict[Text, float] = {}
        for text, mass in texts.items():
            if text[-1:] == (STOP,):
                longer[text] = mass
                continue
            probs = next_token(target, [*PROMPT, *text], params)
            longer |= {(*text, v): mass * p for v, p in enumerate(probs.tolist()) if p > 0}
        texts = longer
    return texts


def p_value(observed: Counter[Text], expected: dict[Text, float], total: int) -> float:
    """Chi-square test after merging the rarest cells until each expects at least 5."""
    if observed.keys() - expected.keys():
        return 0.0  # a text that the target never says
    cells: list[list[float]] = []
    for text in sorted(expected, key=expected.__getitem__):
        if not cells or cells[-1][0] >= 5:
            cells.append([0.0, 0.0])
        cells[-1][0] += expected[text] * total
        cells[-1][1] += observed[text]
    if cells[-1][0] < 5:
        tail = cells.pop()
        cells[-1] = [a + b for a, b in zip(cells[-1], tail, strict=True)]
    chi = sum((o - e) ** 2 / e for e, o in cells)
    half = torch.tensor([(len(cells) - 1) / 2, chi / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def part(texts: dict[Text, float] | Counter[Text], where: slice) -> Counter[Text]:
    """Texts cut to some of their positions, with their masses or counts added."""
    parts: Counter[Text] = Counter()
    for text, mass in texts.items():
        parts[text[where]] += mass  # type: ignore[assignment]
    return parts


@dataclass
class Run:
    """What a run of many sequences said, and how its drafts fared."""

    texts: Counter[Text]
    accepted_length: float
    accept: list[float]  # by position


def answer(params: SamplingParams, reduced: bool, count: int, batch: int = 10_000) -> Run:
    target = TableTarget(stop_ids=[STOP])
    drafter = random_drafter(
        target, BLOCK, vocabulary=SMALL if reduced else None, gain=20.0, seed=1
    )
    engine = Engine(target, drafter, slots=SLOTS, seed=11)
    texts: Counter[Text] = Counter()
    for _ in range(count // batch):
        requests = engine.generate([PROMPT] * batch, params)
        texts.update(tuple(request.output_ids) for request in requests)
    assert engine.stats.steps < count / 64, "sequences must run many at a time"
    return Run(texts, accepted_length(requests), accept_by_position(requests))


def p_values(texts: Counter[Text], params: SamplingParams) -> list[float]:
    exact = enumerate_texts(TableTarget(stop_ids=[STOP]), params)
    assert sum(exact.values()) == pytest.approx(1)
    return [
        p_value(part(texts, where), part(exact, where), texts.total())
        for where in (slice(0, 3), slice(1, 4))
    ]


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


Broken = Callable[[pytest.MonkeyPatch], None]


def accept_always(patch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Verdict:
        target, draft, ids, lengths, accept_u, final_u, d2t = args
        return verification.verify(target, draft, ids, lengths, 0 * accept_u, final_u, d2t)

    patch.setattr(runner, "verify", broken)


def residual_from_target(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification, "_residual", lambda target_SV, draft_SV, d2t: target_SV)


def wrong_draft_temperature(patch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Verdict:
        target, draft, *rest = args
        draft = draft**0.7
        return verification.verify(target, draft / draft.sum(-1, keepdim=True), *rest)

    patch.setattr(runner, "verify", broken)


@pytest.mark.parametrize("reduced", [False, True], ids=["whole-vocabulary", "reduced-vocabulary"])
@pytest.mark.parametrize("damage", [accept_always, residual_from_target, wrong_draft_temperature])
def test_broken_verification_is_caught(
    damage: Broken, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    assert min(p_values(answer(PLAIN, reduced, 20_000).texts, PLAIN)) < 1e-4
