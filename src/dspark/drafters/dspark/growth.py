"""Heads that go on from those of another drafter; what is new of them adds nothing at first.

Suffixes: V vocabulary of the target, r rank of a sequential head, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.drafters.config import SequentialHead

VANILLA, GATED = "vanilla", "gated"
AS_VANILLA = (GATED, "residual_rnn", "refined", "selector")  # heads that can begin as that one
GROWING = (VANILLA, GATED, "selector")  # heads whose rank may rise
BY_SLOT = "refined"  # it has weights for each slot of a block


def grow_sequential(
    mine: SequentialHead | None,
    start: SequentialHead | None,
    draft_ids: tuple[Tensor | None, Tensor | None],
    theirs: dict[str, Tensor],
    own: dict[str, Tensor],
) -> list[str]:
    """The sequential head's weights; says what is new of it.

    Args:
        draft_ids: target ids of both draft vocabularies, mine first; None for the whole one.
        theirs, own: the drafters' weights.
    """
    if mine is None:
        return [] if start is None else ["no sequential head"]
    table, out = own["markov_head.markov_w1.weight"], own["markov_head.markov_w2.weight"]
    with torch.no_grad():
        out.zero_()  # without more, the head gives no bias
        if start is None:
            return [f"a {mine.kind} head that gives no bias"]
        before, kind, rank = start.kind, mine.kind, start.rank
        table[:, :rank].copy_(theirs["markov_head.markov_w1.weight"])
        kept = before == kind or (before == VANILLA and kind in AS_VANILLA)
        if not kept:
            return [f"a {kind} head that gives no bias, in place of a {before} one"]
        rows_mine, rows_theirs = _same_tokens(*draft_ids, len(out), len(table))
        # A gate that knows nothing lets half through; the others are made to begin as vanilla.
        gate = kind == GATED and before != GATED
        scale = 2.0 if gate else 1.0
        old = theirs["markov_head.markov_w2.weight"]
        out[rows_mine, :rank] = scale * old[rows_theirs].to(out.dtype)
        for name in (n for n in own if n.startswith("markov_head.") and "markov_w" not in n):
            if gate or name in theirs:
                own[name].zero_()
            if name in theirs:  # [h ; W_1 row] or what comes of it: the old ones stand in front
                found = theirs[name]
                own[name][tuple(slice(n) for n in found.shape)] = found.to(own[name].dtype)
    new = [f"a {kind} head that begins as the {before} one"] if before != kind else []
    if mine.rank > rank:
        new.append(f"{mine.rank - rank} more ranks of the head, which give no bias")
    if len(rows_mine) < len(out):
        new.append(f"{len(out) - len(rows_mine)} tokens to draft that the head knows no bias for")
    return new


def grow_confidence(theirs: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """The confidence head's weights; inputs that are new to it count for nothing."""
    names = ("confidence_head.proj.weight", "confidence_head.proj.bias")
    if names[0] not in own:
        return ["no confidence head"] if names[0] in theirs else []
    weight, bias = (own[name] for name in names)
    found = theirs.get(names[0])
    with torch.no_grad():
        weight.zero_()
        bias.zero_()
        if found is None or found.shape[1] > weight.shape[1]:
            return ["a confidence head that knows nothing"]
        weight[:, : found.shape[1]] = found.to(weight.dtype)
        bias.copy_(theirs[names[1]])
    return []


def _same_tokens(
    mine: Tensor | None, theirs: Tensor | None, size: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Rows of two draft vocabularies that are the same tokens."""
    own = torch.arange(size) if mine is None else mine.cpu()
    place_V = torch.full((vocab_size,), -1)
    other = torch.arange(vocab_size) if theirs is None else theirs
    place_V[other] = torch.arange(len(other))
    found = place_V[own]
    known = (found >= 0).nonzero()[:, 0]
    return known, found[known]
