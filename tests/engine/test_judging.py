"""Judging in parts: the same verdicts however many rows are held at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dspark.core import Batch, DraftBlock, Request, SamplingParams, StepLayout
from dspark.engine import judging
from dspark.errors import EngineError

V, K = 40, 4
LENGTHS = (4, 0, 2, 4, 1, 3, 0, 4)
ROWS = len(LENGTHS) + sum(LENGTHS)


def spans(drafts: DraftBlock) -> Any:
    kinds = [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.5, top_k=7),
        SamplingParams(temperature=1.5, top_p=0.8),
        SamplingParams(),
    ]
    requests = [Request(r, [7], kinds[r % 4], output_ids=[8]) for r in range(len(LENGTHS))]
    return StepLayout.build(Batch([], requests), drafts, LENGTHS).spans


def inputs(seed: int) -> tuple[torch.Tensor, DraftBlock, Any, Any]:
    torch.manual_seed(seed)
    probs = torch.softmax(2 * torch.randn(len(LENGTHS), K, V), -1)
    ids = torch.multinomial(probs.flatten(0, 1), 1).view(len(LENGTHS), K)
    uniforms = np.random.default_rng(seed).random((2, len(LENGTHS), K))
    return 2 * torch.randn(ROWS, V), DraftBlock(ids, probs), uniforms[0], uniforms[1, :, 0]


@pytest.mark.parametrize("held", [1, 5, 6, 11, 1000])
def test_parts_do_not_show(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = set()
    for seed in range(20):
        logits, drafts, accept_u, final_u = inputs(seed)

        def sampled(rows: int, given: Any = (logits, drafts, accept_u, final_u)) -> Any:
            monkeypatch.setitem(judging._CHUNK, "cpu", rows * V)
            logits, drafts, accept_u, final_u = given
            mine = spans(drafts)
            return judging.judge_sampled(mine, logits, drafts, accept_u, final_u, None)

        assert sampled(held) == sampled(ROWS)
        counts.update(sampled(held).accepted)
        whole = judging.judge_greedy(spans(drafts), logits, drafts)
        monkeypatch.setitem(judging._CHUNK, "cpu", held * V)
        assert judging.judge_greedy(spans(drafts), logits, drafts) == whole
        params = [SamplingParams(temperature=0.9)] * ROWS
        drawn = judging.draw_each(logits, params, np.linspace(0, 0.99, ROWS))
        monkeypatch.setitem(judging._CHUNK, "cpu", ROWS * V)
        assert drawn == judging.draw_each(logits, params, np.linspace(0, 0.99, ROWS))
    assert len(counts) > 2  # the drafts fare differently


@pytest.mark.parametrize("held", [1, 6, 1000])
def test_who_watches_sees_every_request_once(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(judging._CHUNK, "cpu", held * V)
    logits, drafts, accept_u, final_u = inputs(0)
    mine, seen, firsts = spans(drafts), [], []

    def watch(some: Any, target: Any, block: DraftBlock, lengths: Any, verdict: Any) -> None:
        assert len(some) == len(target) == len(block.draft_ids_RK) == len(lengths)
        assert all(a <= n for a, n in zip(verdict.accepted, lengths, strict=True))
        seen.extend(some)
        firsts.append(target[:, 0])

    judging.judge_sampled(mine, logits, drafts, accept_u, final_u, None, watch)
    assert seen == [span.request for span in mine]
    starts = np.cumsum([0, *(n + 1 for n in LENGTHS[:-1])])
    params = [span.request.params for span in mine]
    expected = judging._probabilities(logits[starts], params)
    torch.testing.assert_close(torch.cat(firsts), expected)


def test_parts_hold_no_more_rows_than_asked_for_but_one_request() -> None:
    mine = spans(inputs(0)[1])
    for rows in (1, 3, 5, 8, 100):
        parts = list(judging._parts(mine, rows))
        assert [r for part in parts for r in range(len(LENGTHS))[part]] == list(range(len(LENGTHS)))
        for part in parts:
            held = LENGTHS[part]
            assert len(held) == 1 or len(held) + sum(held) <= rows


def test_a_row_without_a_largest_logit_is_refused_in_any_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(judging._CHUNK, "cpu", 6 * V)
    logits, drafts, accept_u, final_u = inputs(0)
    logits[-1] = float("nan")
    with pytest.raises(EngineError):
        judging.judge_greedy(spans(drafts), logits, drafts)
    with pytest.raises(EngineError):
        judging.judge_sampled(spans(drafts), logits, drafts, accept_u, final_u, None)
