"""Losslessness with every sequential head, and over candidates: counts against the exact law.

The comparison of `test_distribution.py`, with fewer sequences a head: what a head may get wrong is
that p_d is not what it drew from, which the control shows at a quarter of their number.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from dspark.core import SamplingParams
from dspark.drafters.block import drawing
from dspark.engine.engine import Engine
from dspark.engine.stats import accept_by_position, accepted_length
from exact import BLOCK, CUT, LENGTH, PLAIN, PROMPT, SLOTS, SMALL, STOP, Text, p_values
from scripted import TableTarget, random_drafter

HEADS: dict[str, dict[str, Any]] = {
    "residual_rnn": {"markov_head_type": "residual_rnn"},
    "refined": {"markov_head_type": "refined"},
    "selector": {"markov_head_type": "selector"},
    "candidates": {"candidates": 3},
    "refined-candidates": {"candidates": 3, "markov_head_type": "refined"},
}


def engine(head: str, policy: str, reduced: bool) -> Engine:
    """One head, whose update is not nothing, over the small language."""
    target = TableTarget(stop_ids=[STOP])
    vocabulary = SMALL if reduced else None
    more = HEADS[head]
    drafter: Any = random_drafter(target, BLOCK, vocabulary=vocabulary, seed=1, **more)
    for table in (drafter.markov_head.markov_w1, drafter.markov_head.markov_w2):
        table.weight.data *= 20
    draw = torch.Generator().manual_seed(2)
    for weight in drafter.markov_head.parameters():
        if not weight.any():
            weight.data += 0.5 * torch.randn(weight.shape, generator=draw)
    return Engine(target, drafter, policy, slots=SLOTS, seed=11)


def answer(head: str, params: SamplingParams, count: int, reduced: bool = False) -> Any:
    """Texts of many sequences, and the last finished requests."""
    decoding = engine(head, f"fixed:{BLOCK}", reduced)
    texts: Counter[Text] = Counter()
    for _ in range(count // 4_000):
        requests = decoding.generate([PROMPT] * 4_000, params)
        texts.update(tuple(request.output_ids) for request in requests)
    return texts, requests


@pytest.mark.parametrize(
    ("head", "params", "reduced"),
    [
        ("residual_rnn", PLAIN, False),
        ("refined", PLAIN, True),
        ("selector", CUT, False),
        ("candidates", PLAIN, False),
        ("refined-candidates", CUT, True),
    ],
)
def test_joint_counts_follow_the_target(head: str, params: SamplingParams, reduced: bool) -> None:
    texts, requests = answer(head, params, 16_000, reduced)
    assert 1.15 < accepted_length(requests) < 2.8
    assert all(0.05 < share < 0.9 for share in accept_by_position(requests)[: LENGTH - 1])
    assert min(p_values(texts, params)) > 1e-4


@pytest.mark.parametrize("head", ["refined", "candidates"])
def test_probabilities_that_were_not_drawn_from_are_caught(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p_d smoother than what was drawn from; it stands beside the candidates as well."""
    real = drawing.choose

    def broken(*args: Any) -> Any:
        chosen, probs = real(*args)
        return chosen, None if probs is None else 0.7 * probs + 0.3 / probs.shape[-1]

    monkeypatch.setattr(drawing, "choose", broken)
    texts, _ = answer(head, PLAIN, 4_000)
    assert min(p_values(texts, PLAIN)) < 1e-4


@pytest.mark.parametrize("head", list(HEADS))
def test_greedy_text_is_the_target_s(head: str) -> None:
    params = SamplingParams(max_new_tokens=12, ignore_stop=True)
    prompts = [[a, b] for a in range(6) for b in range(6)]
    drafted = engine(head, f"fixed:{BLOCK}", False).generate(prompts, params)
    plain = engine(head, "off", False).generate(prompts, params)
    assert [r.output_ids for r in drafted] == [r.output_ids for r in plain]
    assert accepted_length(drafted) > 1.05  # at random, but some do stand
