"""Adaptive policies against their formulas, worked out anew in every step from the whole past."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dspark.core import Batch, Chunk, Request, RoundRecord, SamplingParams
from dspark.engine.acceptance import MEMORY, PRIOR, SMOOTHING
from dspark.engine.cost_model import MOST_TOKENS
from dspark.engine.draft_gate import HOLD, MARGIN, PROBE_EVERY
from dspark.engine.drafting import SPARE_SHARE
from dspark.engine.policies import PolicyTables
from dspark.engine.policy_names import ADAPTIVE
from dspark.engine.survival import UNKNOWN_ACCEPTANCE
from dspark.tables.calibration import CalibrationEntry, CalibrationTable
from dspark.tables.cost import CostKey, CostTable, envelope, rising
from made_up import committed

K = 5
WAYS = [
    SamplingParams(temperature=t, seed=seed) for t in (0.0, 0.7, 1.0) for seed in (None, None, 3)
]


def some_tables(draw: random.Random) -> PolicyTables:
    """A staircase of any steps; often a calibration for two ways of sampling."""
    sizes = sorted(draw.sample(range(1, 200), 6))
    seconds = 0.01 + np.cumsum([draw.choice([0.0, 0.0002, 0.002, 0.01]) for _ in sizes])
    draft = rising([(1, draw.choice([0.001, 0.01])), (32, 0.03)])
    key = CostKey("m", 1, "t", "float32", "d")
    verify = rising(list(zip(sizes, seconds.tolist(), strict=True)))
    short = tuple((slots, rising([(1, 0.0004 * slots), (32, 0.005 * slots)])) for slots in (1, 3))
    cost = CostTable(key, verify, draft, 64, *((K, short) if draw.random() < 0.7 else ()))
    if draw.random() < 0.7:  # more requests make the same rows dearer
        more = [(n, rising([(n * i, 0.01 + n * (i + 2) / 2e3) for i in (1, 3)])) for n in (1, 4, 9)]
        cost = replace(cost, of_requests=tuple(more))
    entries = []
    for temperature in (0.0, 1.0):
        scales = tuple(draw.uniform(0.5, 3) for _ in range(K))
        mean = tuple(sorted((draw.random() for _ in range(K)), reverse=True))
        entries.append(CalibrationEntry(temperature, 1.0, 0, scales, mean))
    table = CalibrationTable("d", "dspark", K, "t", tuple(entries))
    return PolicyTables(cost, table if draw.random() < 0.7 else None)


def keeps_length(request: Request) -> bool:
    return request.params.seed is not None and request.params.temperature > 0


@dataclass
class Literal:
    """The rules as arrays, with nothing kept but what happened.

    Attributes:
        seen: of each step with drafts, the conditional confidences of each free request by id.
        expected: survival by the past of each request, as the last `choose` found it.
        alone_s: seconds without a draft of anyone, and with 1, 2, … draft tokens, as it found them.
        held: ids of requests, the turn up to which a choice stands for them, and the choice.
    """

    name: str
    tables: PolicyTables
    seen: list[dict[int, Any]] = field(default_factory=list)
    expected: dict[int, Any] = field(default_factory=dict)
    alone_s: Any = None
    held: tuple[list[int], int, list[bool]] = ([], 0, [])

    def verify_s(self, requests: int) -> Any:
        seconds = self.tables.cost.verify_s(MOST_TOKENS, requests)
        return envelope(seconds) if self.name == "causal" else seconds

    def times(self, rows: int, prompts: int, requests: int) -> Any:
        """With 0, 1, … draft tokens beyond these rows, without what the prompts among them take."""
        seconds = self.verify_s(requests)
        return seconds[rows:] - (seconds[rows] - seconds[rows - prompts])

    def entry(self, request: Request) -> Any:
        table = self.tables.calibration
        own = request.params.temperature
        return None if table is None else min(table.entries, key=lambda e: abs(e.temperature - own))

    def mean(self, request: Request) -> Any:
        entry = self.entry(request)
        return np.array(
            entry.mean_survival if entry else UNKNOWN_ACCEPTANCE ** np.arange(1.0, K + 1)
        )

    def wants(self, batch: Batch, turn: int) -> list[bool]:
        ids, held_ids = [r.id for r in batch.decode], self.held[0]
        if turn % PROBE_EVERY and ids == held_ids and turn < self.held[1]:
            return self.held[2]
        self.held = ids, turn + HOLD, self.choose(batch)
        if turn % PROBE_EVERY == 0 and self.number(np.ones((len(ids), K)), self.alone_s):
            self.held = ids, 0, self.held[2]
            return [True] * len(ids)
        return self.held[2]

    def choose(self, batch: Batch) -> list[bool]:
        requests, expected = batch.decode, []
        for request in requests:
            promised = accepted = 0.0
            for record in request.rounds:
                if record.verified:
                    promised = (1 - 1 / MEMORY) * promised
                    promised += self.mean(request)[: record.verified].sum()
                    accepted = (1 - 1 / MEMORY) * accepted + record.accepted
            ratio = (accepted + PRIOR) / (promised + PRIOR)
            expected.append(np.minimum(self.mean(request) * ratio, 1))
        self.expected = {r.id: a for r, a in zip(requests, expected, strict=True)}
        order = np.argsort(-np.array(expected).sum(1), kind="stable")
        total = len(requests)
        self.alone_s = self.times(batch.prefill_rows + total, batch.prefill_rows, total)
        best = set(order[: self.number(np.array(expected)[order], self.alone_s)].tolist())
        return [r in best or keeps_length(requests[r]) for r in range(total)]

    def number(self, ahead: Any, verify_s: Any) -> int:
        """How many of the requests, the most promising first, to draft."""
        total = len(ahead)
        thetas = {0: (1 + MARGIN) * total / verify_s[0]}
        for number in {min(2**i, total) for i in range(8)}:
            thetas[number] = self.best(ahead[:number], number, total, verify_s)[2]
        return max(thetas, key=lambda number: thetas[number])

    def best(
        self, ahead: Any, drafted: int, committed: float, verify_s: Any, whole: bool = False
    ) -> tuple[int, int, float]:
        """Slots, draft tokens and Θ of the best combination, tried one by one."""
        found = (0, 0, -1.0)
        for slots in range(1, K + 1):
            if slots < K and (whole or not self.tables.cost.short):
                continue
            values = -np.sort(-ahead[:, :slots].ravel())
            tokens = committed + np.concatenate([[0], np.cumsum(values)])
            theta = tokens / (self.tables.cost.draft_s(drafted, slots) + verify_s[: len(tokens)])
            if theta.max() > found[2]:
                found = slots, int(theta.argmax()), theta.max()
        return found

    def steps(self, batch: Batch) -> int:
        _, free, committed, verify_s = self.frame(batch)
        if len(free) < len(batch.decode):
            return K
        ahead = np.array([self.ahead(request) for request in batch.decode])
        slots, count, _ = self.best(ahead, len(free), committed, verify_s)
        now, after = (self.tables.cost.draft_s(len(free), n) for n in (slots, slots + 1))
        cheap = slots < K and after - now <= SPARE_SHARE * (now + verify_s[count])
        most = count if self.name == "pipelined" else K
        return max(min(slots + cheap, most), 1)

    def ahead(self, request: Request) -> Any:
        """Survival as the past has it."""
        if self.name == "pipelined":
            return np.cumprod(self.average(request))
        return self.expected[request.id]

    def frame(self, batch: Batch) -> tuple[list[int], list[int], float, Any]:
        """Fixed lengths, places of the others, tokens and seconds without any draft of these."""
        lengths, free, committed = [], [], float(len(batch.plain) + len(batch.decode))
        for r, request in enumerate(batch.decode):
            if not keeps_length(request):
                free.append(r)
                lengths.append(0)
                continue
            tokens = 1 + np.concatenate([[0], np.cumsum(self.mean(request))])
            seconds = self.tables.cost.draft_s(1) + self.verify_s(1)[1 : K + 2]
            lengths.append(int(np.argmax(tokens / seconds)))
            committed += self.mean(request)[: lengths[-1]].sum()
        rows = batch.other_rows + len(batch.decode) + sum(lengths)
        deciding = len(batch.decode) + len(batch.plain)
        return lengths, free, committed, self.times(rows, batch.prefill_rows, deciding)

    def plan(self, batch: Batch, sure_RK: Any) -> list[int]:
        lengths, free, committed, verify_s = self.frame(batch)
        if not free:
            return lengths
        survival = np.array([self.survival(batch.decode[r], sure_RK[r]) for r in free])
        requests = [batch.decode[r] for r in free]
        ranks = sorted((-a, k, i) for (i, k), a in np.ndenumerate(survival))
        total = len(batch.decode)
        if self.name == "pipelined":
            ahead = np.array([self.ahead(request) for request in requests])
            admitted = self.best(ahead, total, committed, verify_s, len(free) < total)[1]
        else:
            values = -np.sort(-survival.ravel())
            tokens = committed + np.concatenate([[0], np.cumsum(values)])
            seconds = self.tables.cost.draft_s(total, len(sure_RK[0])) + verify_s
            theta = tokens / seconds[: len(tokens)]
            admitted = next(
                (n for n in range(len(values)) if theta[n + 1] <= theta[n]), len(values)
            )
        for _, _, i in ranks[:admitted]:
            lengths[free[i]] += 1
        before = np.concatenate([np.ones((len(free), 1)), survival[:, :-1]], 1)
        given = survival / np.maximum(before, 1e-12)
        self.seen.append({request.id: given[i] for i, request in enumerate(requests)})
        return lengths

    def survival(self, request: Request, sure_K: Any) -> Any:
        entry = self.entry(request)
        return entry.survival(sure_K) if entry else np.cumprod(sure_K)

    def average(self, request: Request) -> Any:
        """Conditional confidences, smoothed, as they were two steps ago."""
        mean = self.mean(request)
        found = mean / np.concatenate([[1.0], mean[:-1]])
        for step in self.seen[: max(len(self.seen) - 1, 0)]:
            if request.id in step:
                new = step[request.id]
                found[: len(new)] += SMOOTHING * (new - found[: len(new)])
        return found


@pytest.mark.parametrize("name", ["causal", "pipelined"])
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 6))]
)
def test_what_is_remembered_changes_nothing(name: str, seed: int) -> None:
    draw = random.Random(seed)
    tables = some_tables(draw)
    policy, literal = ADAPTIVE[name](tables, K), Literal(name, tables)
    ids, company = count(1), list[Request]()
    for turn in range(1, PROBE_EVERY + 7):
        company = [request for request in company if draw.random() < 0.95]
        while len(company) < draw.choice([1, 1, 2, 9]):
            company.append(Request(next(ids), [7], draw.choice(WAYS), output_ids=[8]))
        prompts = [Chunk(Request(0, [7] * 9), 0, 9)] if draw.random() < 0.2 else []
        decision = policy.decide(Batch(prompts, company))
        batch, slots = decision.batch, decision.slots
        wanted = literal.wants(Batch(prompts, company), turn)
        assert batch.decode == [r for r, wants in zip(company, wanted, strict=True) if wants]
        if not batch.decode:
            continue
        assert slots == literal.steps(batch)
        sure_RK = np.array([[draw.random() ** 0.3 for _ in range(slots)] for _ in batch.decode])
        drafts: Any = SimpleNamespace(confidence_RK=sure_RK, peaks=False)
        lengths = list(policy.lengths(decision, drafts))
        assert lengths == literal.plan(batch, sure_RK)
        policy.observe(committed(batch, drafts, lengths))
        for request, length in zip(batch.decode, lengths, strict=True):
            accepted = draw.randint(0, length)
            request.rounds.append(RoundRecord(slots, length, accepted, accepted + 1))
