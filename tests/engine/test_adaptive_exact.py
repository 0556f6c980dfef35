"""Adaptive policies against their formulas, worked out anew in every step from the whole past."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dspark.core import Batch, Chunk, Request, RoundRecord, SamplingParams
from dspark.engine.adaptive import (
    ADAPTIVE,
    MOST_TOKENS,
    PROBE_EVERY,
    SMOOTHING,
    Adaptive,
    PolicyTables,
)
from dspark.engine.survival import MEMORY, PRIOR, UNKNOWN_ACCEPTANCE
from dspark.tables.calibration import CalibrationEntry, CalibrationTable
from dspark.tables.cost import CostKey, CostTable, envelope, rising

K = 5
WAYS = [SamplingParams(t, seed=seed) for t in (0.0, 0.7, 1.0) for seed in (None, None, 3)]


def some_tables(draw: random.Random) -> PolicyTables:
    """A staircase of any steps; often a calibration for two ways of sampling."""
    sizes = sorted(draw.sample(range(1, 200), 6))
    seconds = 0.01 + np.cumsum([draw.choice([0.0, 0.0002, 0.002, 0.01]) for _ in sizes])
    draft = rising([(1, draw.choice([0.001, 0.01])), (32, 0.03)])
    key = CostKey("m", 1, "t", "float32", "d")
    cost = CostTable(key, rising(list(zip(sizes, seconds.tolist(), strict=True))), draft, 64)
    entries = []
    for temperature in (0.0, 1.0):
        scales = tuple(draw.uniform(0.5, 3) for _ in range(K))
        mean = tuple(sorted((draw.random() for _ in range(K)), reverse=True))
        entries.append(CalibrationEntry(temperature, 1.0, 0, scales, mean))
    table = CalibrationTable("d", "dspark", K, "t", tuple(entries))
    return PolicyTables(cost, table if draw.random() < 0.7 else None)


@dataclass
class Literal:
    """The rules as arrays, with nothing kept but what happened.

    Attributes:
        seen: of each step with drafts, the conditional confidences of each free request by id.
    """

    name: str
    tables: PolicyTables
    seen: list[dict[int, Any]] = field(default_factory=list)

    @property
    def verify_s(self) -> Any:
        seconds = self.tables.cost.verify_s(MOST_TOKENS)
        return envelope(seconds) if self.name == "causal" else seconds

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
        order = np.argsort(-np.array(expected).sum(1), kind="stable")
        total, verify_s = len(requests), self.verify_s[batch.prefill_rows + len(requests) :]
        thetas = {0: total / verify_s[0]}
        for number in {min(2**i, total) for i in range(8)}:
            survival = -np.sort(-np.array(expected)[order[:number]].ravel())
            tokens = total + np.concatenate([[0], np.cumsum(survival)])
            seconds = self.tables.cost.draft_s(number) + verify_s[: len(tokens)]
            thetas[number] = (tokens / seconds).max()
        best = set(order[: max(thetas, key=lambda number: thetas[number])].tolist())
        always = [r.params.seed is not None and r.params.temperature > 0 for r in requests]
        return [r in best or always[r] or turn % PROBE_EVERY == 0 for r in range(total)]

    def plan(self, batch: Batch, sure_RK: Any) -> list[int]:
        lengths, free, committed = [], [], float(len(batch.plain) + len(batch.decode))
        for r, request in enumerate(batch.decode):
            if request.params.seed is None or request.params.temperature == 0:
                free.append(r)
                lengths.append(0)
                continue
            tokens = 1 + np.concatenate([[0], np.cumsum(self.mean(request))])
            seconds = self.tables.cost.draft_s(1) + self.verify_s[1 : K + 2]
            lengths.append(int(np.argmax(tokens / seconds)))
            committed += self.mean(request)[: lengths[-1]].sum()
        if not free:
            return lengths
        rows = batch.other_rows + len(batch.decode) + sum(lengths)
        seconds = self.tables.cost.draft_s(len(batch.decode)) + self.verify_s[rows:]
        survival = np.array([self.survival(batch.decode[r], sure_RK[r]) for r in free])
        requests = [batch.decode[r] for r in free]
        ranks = sorted((-a, k, i) for (i, k), a in np.ndenumerate(survival))
        ahead = survival
        if self.name == "pipelined":
            ahead = np.array([np.cumprod(self.average(request)) for request in requests])
        values = -np.sort(-ahead.ravel())
        tokens = committed + np.concatenate([[0], np.cumsum(values)])
        theta = tokens / seconds[: len(tokens)]
        admitted = int(np.argmax(theta))
        if self.name == "causal":
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


@pytest.mark.parametrize("name", sorted(ADAPTIVE))
@pytest.mark.parametrize("seed", range(6))
def test_what_is_remembered_changes_nothing(name: str, seed: int) -> None:
    draw = random.Random(seed)
    tables = some_tables(draw)
    policy: Adaptive = ADAPTIVE[name](tables, K)
    literal = Literal(name, tables)
    ids, company = count(1), list[Request]()
    for turn in range(1, PROBE_EVERY + 7):
        company = [request for request in company if draw.random() < 0.95]
        while len(company) < draw.choice([1, 1, 2, 9]):
            company.append(Request(next(ids), [7], draw.choice(WAYS), output_ids=[8]))
        prompts = [Chunk(Request(0, [7] * 9), 0, 9)] if draw.random() < 0.2 else []
        whole = Batch(prompts, company)
        wanted = list(policy.wants(whole))
        assert wanted == literal.wants(whole, turn)
        batch = Batch(
            prompts,
            [request for request, wants in zip(company, wanted, strict=True) if wants],
            [request for request, wants in zip(company, wanted, strict=True) if not wants],
        )
        if not batch.decode:
            continue
        steps = policy.steps(batch)
        sure_RK = np.array([[draw.random() ** 0.3 for _ in range(steps)] for _ in batch.decode])
        drafts: Any = SimpleNamespace(confidence_RK=sure_RK)
        lengths = list(policy.plan(batch, drafts))
        assert lengths == literal.plan(batch, sure_RK)
        for request, length in zip(batch.decode, lengths, strict=True):
            accepted = draw.randint(0, length)
            request.rounds.append(RoundRecord(steps, length, accepted, accepted + 1))
