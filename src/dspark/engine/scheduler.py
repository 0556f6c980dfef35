"""How many draft tokens of each request are verified (DSpark §3.2.2).

A policy must not let the fate of a draft token depend on the token itself or on later ones: that
is what keeps verification lossless when the length varies.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from dspark.core import Batch, DraftBlock, Request, VerifyPlan
from dspark.errors import ConfigError

CHOICES = "off, fixed:K with K from 1 to the drafter's block size, or threshold:P"


class Policy(ABC):
    """Decides verify lengths.

    Attributes:
        name: as it is written on the command line.
        draft_len: draft tokens to make each round, at most; 0 for plain decoding.
        needs_confidence: it reads the drafter's confidences.
    """

    name: str
    draft_len: int
    needs_confidence: bool = False

    @abstractmethod
    def plan(self, requests: Sequence[Request], drafts: DraftBlock) -> Sequence[int]:
        """Draft tokens to verify of each request, 0 to K."""


class Off(Policy):
    """Plain decoding: nothing is drafted."""

    name, draft_len = "off", 0

    def plan(self, requests: Sequence[Request], drafts: DraftBlock) -> Sequence[int]:
        return [0] * len(requests)


class Fixed(Policy):
    """The same number of draft tokens for every request in every round."""

    def __init__(self, length: int) -> None:
        assert length >= 1
        self.name, self.draft_len = f"fixed:{length}", length

    def plan(self, requests: Sequence[Request], drafts: DraftBlock) -> Sequence[int]:
        return [self.draft_len] * len(requests)


class Threshold(Policy):
    """Slots up to the first whose confidence c_k is below a limit (the paper's Figure 5).

    Lossless: c_k does not look at draft token k, so a token's fate hangs on earlier ones alone.
    """

    needs_confidence = True

    def __init__(self, limit: float, block_size: int) -> None:
        self.name, self.draft_len, self.limit = f"threshold:{limit:g}", block_size, limit

    def plan(self, requests: Sequence[Request], drafts: DraftBlock) -> Sequence[int]:
        assert drafts.confidence_RK is not None
        return [
            next((k for k, sure in enumerate(sure_K) if sure < self.limit), len(sure_K))
            for sure_K in drafts.confidence_RK.tolist()
        ]


def parse_policy(text: str, block_size: int) -> Policy:
    """A policy by its name.

    Args:
        text: "off", "fixed:K" or "threshold:P".
        block_size: draft tokens the drafter can make in a round; 0 without a drafter.

    Raises:
        ConfigError: for anything else, naming the choices.
    """
    if text == "off":
        return Off()
    match = re.fullmatch(r"(?:fixed:(\d+)|threshold:(\d*\.?\d+))", text)
    limit = float(match[2]) if match and match[2] else 0.0
    if match is None or limit > 1:
        raise ConfigError("Unknown policy", found=text, fix=f"Use {CHOICES}")
    if block_size == 0:
        raise ConfigError(f"Policy {text} needs a drafter", fix="Name one, or use the policy off")
    if match[2]:
        return Threshold(limit, block_size)
    length = int(match[1])
    if not 1 <= length <= block_size:
        raise ConfigError(
            f"Policy {text} does not fit the drafter",
            found=f"block size {block_size}",
            fix=f"Use {CHOICES}",
        )
    return Fixed(length)


class Scheduler:
    """Applies a policy to a batch and keeps what is verified inside the caches.

    Args:
        policy: decides the lengths.
        max_len: cache positions of a request.
    """

    def __init__(self, policy: Policy, max_len: int) -> None:
        self.policy, self.max_len = policy, max_len

    def plan(self, batch: Batch, drafts: DraftBlock | None) -> VerifyPlan:
        """Verify lengths of the batch's decode requests."""
        if drafts is None:
            return VerifyPlan((0,) * len(batch.decode))
        lengths = self.policy.plan(batch.decode, drafts)
        # The anchor itself takes a position too. The bound looks at no token, so it is lossless.
        rooms = [self.max_len - 1 - request.anchor_pos for request in batch.decode]
        return VerifyPlan(tuple(map(min, lengths, rooms)))
