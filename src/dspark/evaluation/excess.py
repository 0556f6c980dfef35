"""How often committed tokens fall among those that a drafter overrates, against what is due.

Tokens are judged by whether they fall among those that the drafter overrates, S = {p_d > p_t},
where broken acceptance shows, and by fixed groups of the vocabulary, where a policy that favours
some tokens shows. The excess over P_t(S) is a martingale, so its sum over its standard
deviation is a normal deviate.

Suffixes: R requests, K block slots, V vocabulary, N tokens, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dspark.core import DraftBlock, Request, Verdict

ALPHA, POWER = 1e-4, 0.95
GROUPS = 16  # of the vocabulary


@dataclass(slots=True)
class Excess:
    """How often committed tokens fell among the overrated ones, against what was due.

    Attributes:
        tokens: committed tokens judged.
        hits: those in S.
        due: Σ P_t(S).
        variance: Σ P_t(S) (1 - P_t(S)).
    """

    tokens: int = 0
    hits: float = 0.0
    due: float = 0.0
    variance: float = 0.0

    def add(self, hit_N: Tensor, mass_N: Tensor) -> None:
        """Count tokens: whether each fell in S, and P_t(S) at its place."""
        mass_N = mass_N.double().clamp(0, 1)
        self.tokens += len(hit_N)
        self.hits += float(hit_N.double().sum())
        self.due += float(mass_N.sum())
        self.variance += float((mass_N * (1 - mass_N)).sum())

    @property
    def z(self) -> float:
        """Normal deviate of the excess; 0 when nothing could vary."""
        return (self.hits - self.due) / math.sqrt(self.variance) if self.variance else 0.0

    @property
    def p_value(self) -> float:
        """Two-sided."""
        return math.erfc(abs(self.z) / math.sqrt(2))

    @property
    def distance_seen(self) -> float:
        """Smallest mean total variation towards the drafter that would have been noticed.

        With probability POWER at level ALPHA; infinite without tokens.
        """
        if not self.tokens:
            return math.inf
        normal = torch.distributions.Normal(0.0, 1.0)
        deviates = normal.icdf(torch.tensor([1 - ALPHA / 2, POWER])).sum()
        return float(deviates) * math.sqrt(self.variance) / self.tokens


@dataclass(slots=True)
class Watch:
    """Sits at an engine's verdicts and fills `Excess`, slot by slot.

    Attributes:
        slots: one `Excess` of the overrated tokens for each block slot.
        groups: one `Excess` for each fixed group of the vocabulary.
        verified: rounds by verify length.
    """

    d2t: Tensor | None
    slots: list[Excess] = field(default_factory=list)
    groups: list[Excess] = field(default_factory=lambda: [Excess() for _ in range(GROUPS)])
    verified: dict[int, int] = field(default_factory=dict)

    def __call__(
        self,
        requests: Sequence[Request],
        target_RKV: Tensor,
        drafts: DraftBlock,
        verify_len: Sequence[int],
        verdict: Verdict,
    ) -> None:
        """One step's verdict; rows of ``target_RKV`` beyond a request's verify length are void."""
        assert drafts.draft_probs_RKV is not None
        ids = drafts.draft_ids_RK.tolist()
        depth = drafts.draft_ids_RK.shape[1]
        while len(self.slots) < depth:
            self.slots.append(Excess())
        for length in verify_len:
            self.verified[length] = self.verified.get(length, 0) + 1
        for k in range(depth):
            # Slot k speaks of a committed token where all drafts before it stand.
            rows = [r for r in range(len(requests)) if verdict.accepted[r] >= k]
            rows = [r for r in rows if k <= verify_len[r]]
            if not rows:
                break
            said = [ids[r][k] if verdict.accepted[r] > k else verdict.next_id[r] for r in rows]
            p_t = target_RKV[rows, k].float()
            p_d = self._wide(drafts.draft_probs_RKV[rows, k], p_t)
            overrated = p_d > p_t
            said_N = torch.tensor(said, device=p_t.device)
            hit = overrated.gather(1, said_N[:, None])[:, 0]
            self.slots[k].add(hit, torch.where(overrated, p_t, 0.0).sum(1))
            # Knuth's multiplicative hash: neighbours in the vocabulary fall into other groups.
            group_V = torch.arange(p_t.shape[1], device=p_t.device) * 2654435761 // 2**16 % GROUPS
            mass_NG = p_t.new_zeros(len(rows), GROUPS).index_add_(1, group_V, p_t)
            for g, excess in enumerate(self.groups):
                excess.add(group_V[said_N] == g, mass_NG[:, g])

    def _wide(self, draft: Tensor, like: Tensor) -> Tensor:
        if self.d2t is None:
            return draft.float()
        wide = torch.zeros_like(like)
        wide[:, self.d2t] = draft.float()
        return wide

    @property
    def total(self) -> Excess:
        """All slots together."""
        parts = self.slots
        return Excess(
            sum(p.tokens for p in parts),
            sum(p.hits for p in parts),
            sum(p.due for p in parts),
            sum(p.variance for p in parts),
        )
