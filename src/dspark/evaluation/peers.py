"""Other ways to run the same target beside this engine: the same prompts, in turn, in one run.

Peers take turns prompt by prompt, and another one begins each time, so drift of the machine's
speed falls on all alike. Answers are greedy token ids, so texts can be compared as well as speeds.

Suffixes: B resamples, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import transformers

from dspark import __version__
from dspark.core import SamplingParams
from dspark.engine.engine import Engine
from dspark.engine.stats import accepted_length
from dspark.errors import ConfigError
from dspark.evaluation.answers import Answer, answer, answer_with_transformers, difference
from dspark.evaluation.cells import Contender
from dspark.maths.bootstrap import Floats, ratio, resample_counts
from dspark.maths.summary import rounded, rounded_interval
from dspark.targets.target import Target

SCHEMA = "dspark.peers/1"
LOOKUP_TOKENS = 10  # that prompt lookup drafts, as its documentation has it

Ask = Callable[[list[int], SamplingParams], Answer]
OnAnswer = Callable[[str, int, int], None]  # peer, prompts begun, of how many


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run the target.

    Attributes:
        name: of the program.
        ask: answers one prompt; None when the peer is missing.
        drafter, policy: how it drafts, if it does.
        version: of the program.
        note: what weights it runs, where they are not the target's own.
        missing: why it cannot run; None when it can.
    """

    name: str
    ask: Ask | None = None
    drafter: str | None = None
    policy: str | None = None
    version: str | None = None
    note: str | None = None
    missing: str | None = None

    def __post_init__(self) -> None:
        assert (self.ask is None) == (self.missing is not None)

    @property
    def label(self) -> str:
        """Name, drafter and policy, as far as it has them."""
        drafter = f"+ {self.drafter}" if self.drafter else None
        return " ".join(filter(None, (self.name, drafter, self.policy)))


def plain_peer(target: Target, room: int) -> Peer:
    """This engine without a drafter; all others are compared with it."""
    engine = Engine(target, None, "off", slots=1, max_len=room)
    return Peer("dspark", _asks(engine), policy="off", version=__version__)


def drafted_peer(
    target: Target,
    contender: Contender,
    room: int,
    policy: str | None = None,
) -> Peer:
    """This engine with a drafter.

    Args:
        room: longest text, prompt included, in tokens.
        policy: by default "auto".

    Raises:
        ConfigError: an unknown policy, or one that does not fit the drafter.
    """
    drafter = contender.drafter
    engine = Engine(target, drafter, policy, slots=1, max_len=room)
    name = engine.policy.name
    return Peer("dspark", _asks(engine), contender.label, name, __version__)


def _asks(engine: Engine) -> Ask:
    return lambda ids, params: answer(engine, ids, params)


def transformers_peers(module: Any, target: Target) -> list[Peer]:
    """``generate`` of the Hugging Face module, plain and with prompt lookup."""

    def ask(**options: Any) -> Ask:
        return lambda ids, params: answer_with_transformers(module, target, ids, params, **options)

    version = transformers.__version__
    lookup = ask(prompt_lookup_num_tokens=LOOKUP_TOKENS)
    return [
        Peer("transformers", ask(), version=version),
        Peer("transformers", lookup, drafter="prompt lookup", version=version),
    ]


def run(
    target: Target,
    peers: Sequence[Peer],
    prompts: Sequence[list[int]],
    params: SamplingParams,
    on_answer: OnAnswer = lambda peer, done, all_: None,
) -> list[dict[str, Any]]:
    """Let every peer that is there answer every prompt; the first prompt warms up.

    Args:
        peers: the first one is what the others are compared with.
        prompts: token ids, two or more.
        on_answer: called before each answer.

    Returns:
        Rows of schema dspark.peers/1, in the order of the peers.

    Raises:
        ConfigError: there are fewer than two prompts.
        DataError: a server stopped giving answers.
    """
    if len(prompts) < 2:
        raise ConfigError(
            "There is nothing to measure: the first prompt warms up",
            found=f"{len(prompts)} prompts",
            fix="Give two or more",
        )
    answers: list[list[Answer]] = [[] for _ in peers]
    there = [(peer, own) for peer, own in zip(peers, answers, strict=True) if peer.ask is not None]
    for turn, ids in enumerate(prompts):
        first = turn % len(there)  # nobody always follows the same other one
        for peer, own in there[first:] + there[:first]:
            assert peer.ask is not None
            on_answer(peer.label, turn, len(prompts))
            own.append(peer.ask(ids, params))
    plain = answers[0][1:]
    pairs = zip(peers, answers, strict=True)
    return [
        _names(peer) | figures(target, own[1:], plain, bool(peer.drafter)) for peer, own in pairs
    ]


def _names(peer: Peer) -> dict[str, Any]:
    return {
        "label": peer.label,
        "peer": peer.name,
        "drafter": peer.drafter,
        "policy": peer.policy,
        "version": peer.version,
        "missing": peer.missing,
    }


def figures(
    target: Target, own: Sequence[Answer], plain: Sequence[Answer], drafted: bool
) -> dict[str, Any]:
    """Speeds and texts of one peer beside the plain engine's, over the same prompts.

    Args:
        own: empty for a missing peer, whose figures are all null.
        drafted: rounds of drafts stand in the requests, if the peer is this engine.
    """
    speed, speed_B = _speeds(own)
    other, other_B = _speeds(plain)
    requests = [a.request for a in own]
    parted = [
        difference(target, "", base.request, mine.request)["logit_gap"]
        for base, mine in zip(plain, own, strict=False)
        if _text(target, base) != _text(target, mine)
    ]
    return {
        "tokens_per_s": rounded(speed),
        "tokens_per_s_ci": rounded_interval(speed_B),
        "ratio_to_plain": rounded(float(ratio(speed, other))),
        "ratio_ci": rounded_interval(ratio(speed_B, other_B)),
        "seconds": round(sum(a.seconds for a in own), 4) if own else None,
        "tokens": sum(len(request.output_ids) for request in requests) if own else None,
        "prompts": len(own) if own else None,
        "accepted_length": rounded(accepted_length(requests)) if drafted else None,
        "equal_texts": round(1 - len(parted) / len(own), 4) if own else None,
        "largest_gap": max(parted, default=None),
    }


def _speeds(answers: Sequence[Answer]) -> tuple[float, Floats]:
    """Tokens a second over all prompts, and over each resample of them, [B]."""
    if not answers:
        return float("nan"), np.array([np.nan])
    tokens_P = np.array([len(a.request.output_ids) for a in answers], np.float64)
    seconds_P = np.array([a.seconds for a in answers])
    counts_BP = resample_counts(len(answers))  # the same ones for all peers: ratios are paired
    resampled_B = ratio(counts_BP @ tokens_P, counts_BP @ seconds_P)
    return float(ratio(tokens_P.sum(), seconds_P.sum())), resampled_B


def _text(target: Target, given: Answer) -> list[int]:
    """Token ids before the stop token, which not every program hands over."""
    ids = given.request.output_ids
    return ids[: next((i for i, token in enumerate(ids) if token in target.stop_ids), len(ids))]
