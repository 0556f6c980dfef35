"""What weights of eight bits cost and gain: the same target with its own weights beside them.

Both read the same answers, which neither made here, so the figures say what rounding does to the
target's predictions; speeds come from prompts that both answer in turn.

Suffixes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dspark import native
from dspark.core import SamplingParams
from dspark.data.responses import Response, check_vocabulary
from dspark.evaluation.cells import load_contender
from dspark.evaluation.peers import OnAnswer, Peer, drafted_peer, plain_peer
from dspark.evaluation.peers import run as take_turns
from dspark.targets.products import on_level
from dspark.targets.target import LeanTarget, load_target
from dspark.targets.weights import INT8, SAME

SCHEMA = "dspark.weights/1"
ROWS = 128  # of logits held at a time


@dataclass(frozen=True, slots=True)
class Kept:
    """A target and the kernel level chosen for it.

    Attributes:
        target: on the lean forward.
        level: that served when it was loaded.
    """

    target: LeanTarget
    level: str

    @property
    def facts(self) -> dict[str, Any]:
        """What both kinds of weights are described by."""
        mib = self.target.weight_bytes / 2**20
        return {"kernels": self.level, "weights_mib": round(mib, 2)}


def load_both(name: str | Path, dtype: str, device: str) -> tuple[Kept, Kept]:
    """A target with its own weights, and with eight bits in the same number type.

    Raises:
        ConfigError: weights of eight bits are not served for it here.
        CheckpointError: nothing loadable is found, or files are damaged.
    """
    small = load_target(name, dtype, device, INT8)  # what cannot be is heard of first
    level = native.current()
    full = load_target(name, small.dtype_name, device)
    assert isinstance(small, LeanTarget)
    assert isinstance(full, LeanTarget)
    return Kept(full, native.current()), Kept(small, level)


def compare(
    full: Kept,
    small: Kept,
    answers: Sequence[Response],
    on_answer: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """How the predictions of answers' tokens differ.

    Returns:
        answers, tokens, `same` and `int8` with what each weighs and its perplexity, same_choice
        (share of places whose likeliest token is the same) and mean_kl (nats a token, from the
        full weights' distribution to the rounded ones').

    Raises:
        DataError: answers belong to another target.
    """
    check_vocabulary(answers, full.target.spec.vocab_size)
    loss, sums, tokens = [0.0, 0.0], [0.0, 0.0], 0
    for done, answer in enumerate(answers, 1):
        with torch.inference_mode():
            states = [_states(kept, answer) for kept in (full, small)]
            said_T = torch.from_numpy(answer.response_ids).long()
            for start in range(0, len(said_T), ROWS):
                part = slice(start, start + ROWS)
                wide, rounded = (
                    _log_probs(kept, last_TD[part])
                    for kept, last_TD in zip((full, small), states, strict=True)
                )
                for i, log_TV in enumerate((wide, rounded)):
                    loss[i] -= float(log_TV.gather(1, said_T[part, None]).double().sum())
                sums[0] += float((wide.argmax(1) == rounded.argmax(1)).sum())
                sums[1] += float((wide.exp() * (wide - rounded)).double().sum())
        tokens += len(said_T)
        on_answer(done)
    return {
        "answers": len(answers),
        "tokens": tokens,
        SAME: full.facts | {"perplexity": round(math.exp(loss[0] / tokens), 5)},
        INT8: small.facts | {"perplexity": round(math.exp(loss[1] / tokens), 5)},
        "same_choice": round(sums[0] / tokens, 5),
        "mean_kl": round(sums[1] / tokens, 7),
    }


def _states(kept: Kept, answer: Response) -> Tensor:
    """Last states [T, D] at the places that predict the answer's tokens."""
    with on_level(kept.level):
        ids = [*answer.prompt_ids.tolist(), *answer.response_ids.tolist()[:-1]]
        last_TD, _ = kept.target.states([ids], ())
        return last_TD[len(answer.prompt_ids) - 1 :]


def _log_probs(kept: Kept, last_TD: Tensor) -> Tensor:
    with on_level(kept.level):
        return kept.target.logits(last_TD).float().log_softmax(-1)


def time_both(
    full: Kept,
    small: Kept,
    folder: Path,
    policy: str | None,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    on_answer: OnAnswer = lambda peer, done, all_: None,
) -> list[dict[str, Any]]:
    """Speeds of both, plain and with a drafter, prompt by prompt in turn.

    Args:
        folder: of the drafter.
        policy: by default "auto".

    Returns:
        Rows as `peers.run` gives them, compared with plain decoding with the full weights.
    """
    room = max(map(len, prompts)) + params.max_new_tokens
    room = min(room, full.target.max_positions)
    peers = []
    for kept in (full, small):
        with on_level(kept.level):
            drafted = load_contender(folder, kept.target)
            both = plain_peer(kept.target, room), drafted_peer(kept.target, drafted, room, policy)
        peers += [_on_its_level(peer, kept) for peer in both]
    return take_turns(full.target, peers, prompts, params, on_answer)


def _on_its_level(peer: Peer, kept: Kept) -> Peer:
    """A peer named by its weights, that runs on the kernel level they were loaded for."""
    ask = peer.ask
    assert ask is not None

    def on_own_level(ids: list[int], params: SamplingParams) -> Any:
        with on_level(kept.level):
            return ask(ids, params)

    return replace(peer, name=kept.target.weights, ask=on_own_level)
