"""Figures of an evaluation cell's finished requests (docs/algorithms.md, "What is counted")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspark.core import Request
from dspark.engine import stats
from dspark.maths.summary import rounded, row_intervals


def figures(
    dataset: str,
    prompt_ids: Sequence[str],
    requests: Sequence[Request],
    draft_len: int,
    seconds: float,
) -> dict[str, Any]:
    """What the rounds of one drafter on one dataset add up to.

    Args:
        dataset: its name; decides the bootstrap's draws.
        prompt_ids: names of the prompts, in the order of `requests`.
        requests: finished, one a prompt.
        draft_len: slots to list, the longest draft there may have been.
        seconds: it took to answer them all, prompts included.

    Returns:
        The counted fields of a row of schema dspark.eval/1; a slot that was never reached is None.
    """
    counts = [_counts(request, draft_len) for request in requests]
    per_prompt: dict[str, list[Any]] = {
        "ids": list(prompt_ids),
        "committed": [sum(record.committed for record in r.rounds) for r in requests],
        "rounds": [len(r.rounds) for r in requests],
        "accepted": [[accepted for accepted, _ in slots] for slots in counts],
        "reached": [[reached for _, reached in slots] for slots in counts],
    }
    new_tokens = sum(len(r.output_ids) for r in requests)
    by_position = [rounded(share) for share in stats.accept_by_position(requests)]
    return {
        "prompts": len(requests),
        "new_tokens": new_tokens,
        "rounds": sum(per_prompt["rounds"]),
        "accepted_length": rounded(stats.accepted_length(requests)),
        "accept_by_position": by_position + [None] * (draft_len - len(by_position)),
        **row_intervals({"dataset": dataset, "per_prompt": per_prompt}),
        "verified_tokens": stats.verified_tokens(requests),
        "wasted_tokens": stats.wasted_tokens(requests),
        "tokens_per_s": round(new_tokens / seconds, 2),
        "per_prompt": per_prompt,
    }


def _counts(request: Request, draft_len: int) -> list[tuple[int, int]]:
    """(accepted, reached) of every slot, those that were never verified too."""
    counts = stats.accept_counts([request])
    return counts + [(0, 0)] * (draft_len - len(counts))
