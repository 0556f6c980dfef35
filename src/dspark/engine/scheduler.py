"""From a policy to a plan that fits the caches (DSpark §3.2.2)."""

from __future__ import annotations

import re
from dataclasses import replace

from dspark.core import Batch, DraftBlock, VerifyPlan
from dspark.engine.adaptive import Adaptive, PolicyTables
from dspark.engine.adaptive_policies import Causal, Pipelined
from dspark.engine.auto import Auto
from dspark.engine.policies import Fixed, Off, Policy, Threshold
from dspark.errors import ConfigError

CHOICES = (
    "auto, off, fixed:K with K from 1 to the drafter's block size, threshold:P, causal or pipelined"
)

ADAPTIVE: dict[str, type[Adaptive]] = {cls.name: cls for cls in (Auto, Causal, Pipelined)}


def parse_policy(text: str, block_size: int, tables: PolicyTables | None = None) -> Policy:
    """A policy by its name.

    Args:
        text: "auto", "off", "fixed:K", "threshold:P", "causal" or "pipelined"; "auto" without a
            drafter is plain decoding.
        block_size: draft tokens the drafter can make in a round; 0 without a drafter.
        tables: what the adaptive policies know of the machine and the drafter.

    Raises:
        ConfigError: for anything else, naming the choices; or an adaptive policy without tables.
    """
    if text == "off" or (text == Auto.name and block_size == 0):
        return Off()
    match = re.fullmatch(r"(?:fixed:(\d+)|threshold:(\d*\.?\d+)|auto|causal|pipelined)", text)
    limit = float(match[2]) if match and match[2] else 0.0
    if match is None or limit > 1:
        raise ConfigError("Unknown policy", found=text, fix=f"Use {CHOICES}")
    if block_size == 0:
        raise ConfigError(f"Policy {text} needs a drafter", fix="Name one, or use the policy off")
    if text in ADAPTIVE:
        if tables is None:
            raise ConfigError(
                f"Policy {text} needs to know what a round costs on this machine",
                fix="Measure it with `dspark profile`",
            )
        return ADAPTIVE[text](tables, block_size)
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

    def choose(self, batch: Batch) -> Batch:
        """The batch with whom the policy wants drafted, how far, and the others set apart."""
        if not self.policy.draft_len or not batch.decode:
            return batch
        wanted = self.policy.wants(batch)
        pairs = list(zip(batch.decode, wanted, strict=True))
        drafted = [request for request, wants in pairs if wants]
        plain = [request for request, wants in pairs if not wants]
        chosen = Batch(batch.prefill, drafted, plain)
        return replace(chosen, draft_len=self.policy.steps(chosen)) if drafted else chosen

    def plan(self, batch: Batch, drafts: DraftBlock | None) -> VerifyPlan:
        """Verify lengths of the batch's decode requests."""
        if drafts is None:
            return VerifyPlan((0,) * len(batch.decode))
        lengths = self.policy.plan(batch, drafts)
        if drafts.lengths is not None:
            lengths = list(map(min, lengths, drafts.lengths))
        # The anchor itself takes a position too. The bound looks at no token, so it is lossless.
        rooms = [self.max_len - 1 - request.anchor_pos for request in batch.decode]
        return VerifyPlan(tuple(map(min, lengths, rooms)))
