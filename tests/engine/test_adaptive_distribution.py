"""Adaptive policies lose nothing; a policy that looks past a dip in Θ does, and is caught.

The method is that of `test_distribution.py`. Confidences are made to hang strongly on the draft
token before, so that verify lengths really vary with what was drafted. Both rules of
verification are met; where nothing is said it is block verification.

Power: 8,000 sequences give p-values below 1e-29 for both broken ways, whatever the seed; 24,000 are
held against the right ones.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dspark.core import BLOCK as BLOCK_RULE
from dspark.core import RULES, TOKEN, Batch, DraftDecision, Request, StepRecord
from dspark.drafters.dspark.informed import InformedConfidence
from dspark.engine import exploration
from dspark.engine.draft_gate import Choice, Gate
from dspark.engine.engine import Engine
from dspark.engine.policies import Policy, PolicyTables
from dspark.engine.policy_names import auto, causal, pipelined
from dspark.engine.scheduler import Adaptive
from dspark.engine.survival import Mean
from dspark.maths import admission
from dspark.tables.cost import CostKey, CostTable, rising
from exact import BLOCK, PLAIN, PROMPT, SLOTS, STOP, Text, p_values
from scripted import TableTarget, random_drafter

# Rows that pay for a draft token surer than about 0.4, dearer at first than behind: what tempts a
# rule to look on.
COST = CostTable(
    CostKey("m", 1, "t", "float32", "d"),
    rising([(1, 60.0), (SLOTS, 100.0), (2 * SLOTS, 145.0), (SLOTS * (BLOCK + 1), 260.0)]),
    (),
    8,
)


class Retrospective(Policy):
    """The rule Appendix A warns of, for each request alone: the best length over all of Θ."""

    name, draft_len, needs_confidence = "retrospective", BLOCK, True
    seconds = (1.0, 1 / 0.5, 1 / 0.45, 9.0, 9.0)

    def lengths(self, decision: DraftDecision, drafts: Any) -> Sequence[int]:
        survival_RK = drafts.confidence_RK.numpy().cumprod(1)
        counts = [admission.capacity(a_K[None], self.seconds) for a_K in survival_RK]
        return counts


class Alone(Retrospective):
    """The same costs under Algorithm 1."""

    name = "alone"

    def lengths(self, decision: DraftDecision, drafts: Any) -> Sequence[int]:
        survival_RK = drafts.confidence_RK.numpy().cumprod(1)
        return [int(admission.causal(a_K[None], self.seconds)[0]) for a_K in survival_RK]


def informed(drafter: Any) -> InformedConfidence:
    """A head that is the less sure the less likely the last drawn token was beside the best."""
    inner_HC = torch.zeros(1, drafter.clue_count)
    inner_HC[0, -drafter.config.block_size - 2] = -1.0  # log p / max p, the second number on it
    return InformedConfidence(inner_HC, torch.zeros(1), torch.tensor([-2.0]), torch.tensor(1.5))


class RestlessGate:
    """Learns from made-up times, so that drafts pay at one time and not at another."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.draw = gate, random.Random(0)

    def choose(self, batch: Batch) -> Choice:
        return self.gate.choose(batch)

    def observe(self, step: StepRecord) -> None:
        made_up = replace(step, seconds=self.draw.uniform(0.3, 3.0), prompts=0, late=0)
        self.gate.observe(made_up)


def restless(cost: CostTable) -> Adaptive:
    """`auto` on made-up times."""
    tables = PolicyTables(cost)
    policy = auto(tables, BLOCK)
    gate = RestlessGate(policy.gate)
    return Adaptive("auto", tables, gate, policy.planner)


def headless(draft: Any = None) -> Any:
    """A drafter that tells its largest probabilities.

    Args:
        draft: in the place of its own way to draft.
    """
    target = TableTarget(stop_ids=[STOP])
    drafter: Any = random_drafter(target, BLOCK, gain=20.0, seed=1, confidence_head=False)
    if draft is not None:
        own = drafter.draft
        drafter.draft = lambda *args, **more: draft(own(*args, **more))
    return drafter


def run(
    policy: Policy,
    count: int,
    batch: int = 8_000,
    *,
    head: bool = False,
    drafter: Any = None,
    rule: str = BLOCK_RULE,
) -> tuple[Counter[Text], list[Request]]:
    """Texts of many sequences, and the last batch's requests.

    Args:
        head: let an informed confidence head speak instead of the linear one.
        drafter: in the place of one with a linear head.
        rule: by which drafts are accepted.
    """
    target = TableTarget(stop_ids=[STOP])
    if drafter is None:
        drafter = confident(target)
        drafter.informed = informed(drafter) if head else None
    engine = Engine(target, drafter, policy, slots=SLOTS, seed=11, verification=rule)
    texts: Counter[Text] = Counter()
    for _ in range(count // batch):
        requests = engine.generate([PROMPT] * batch, PLAIN)
        texts.update(tuple(request.output_ids) for request in requests)
    return texts, requests


def confident(target: TableTarget) -> Any:
    """A drafter whose linear head hangs strongly on the token before."""
    drafter: Any = random_drafter(target, BLOCK, gain=20.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    weight = drafter.confidence_head.proj.weight
    weight.data = torch.randn(weight.shape, generator=generator) * 3
    drafter.confidence_head.proj.bias.data.fill_(-5.5)  # from 0.1 to 0.98, by the token before
    return drafter


def lengths_by_first_token(requests: Sequence[Request]) -> Counter[int]:
    return Counter(record.verified for request in requests for record in request.rounds[:1])


@pytest.mark.parametrize("rule", [BLOCK_RULE, pytest.param(TOKEN, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", [causal, pipelined, auto])
def test_joint_counts_follow_the_target(kind: Any, rule: str) -> None:
    texts, requests = run(kind(PolicyTables(COST), BLOCK), 24_000, rule=rule)
    seen = lengths_by_first_token(requests)
    often = [length for length, count in seen.items() if count >= 400]
    assert len(often) >= 2, seen  # verify lengths vary in one and the same state
    assert min(p_values(texts, PLAIN)) > 1e-4


@pytest.mark.parametrize("kind", [causal, pipelined, auto])
def test_an_informed_head_changes_nothing_either(kind: Any) -> None:
    texts, requests = run(kind(PolicyTables(COST), BLOCK), 24_000, head=True)
    often = [n for n, count in lengths_by_first_token(requests).items() if count >= 100]
    assert len(often) >= 2
    assert min(p_values(texts, PLAIN)) > 1e-4


def test_what_is_learned_while_serving_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploration, "PLAIN_EVERY", 3)
    monkeypatch.setattr(exploration, "FIRST_TRY", 2)
    policy = restless(COST)
    texts, requests = run(policy, 100_000)
    drafted = Counter(record.drafted for request in requests for record in request.rounds)
    assert len(drafted) >= 2, drafted
    assert min(p_values(texts, PLAIN)) > 1e-4


def test_a_drafter_without_a_head_changes_nothing() -> None:
    flat = [(1, 60.0), (SLOTS, 100.0), (2 * SLOTS, 103.0), (SLOTS * (BLOCK + 1), 112.0)]
    cheap_rows = replace(COST, verify=rising(flat))  # whole drafts pay, or all but their last token
    policy = restless(cheap_rows)
    texts, requests = run(policy, 32_000, drafter=headless())
    seen = lengths_by_first_token(requests)
    assert len([length for length, count in seen.items() if count >= 100]) >= 2, seen
    assert policy.acceptance.mean(PLAIN).tokens != Mean.unknown(BLOCK).tokens
    assert min(p_values(texts, PLAIN)) > 1e-4


def test_a_clue_that_sees_the_token_itself_is_caught() -> None:
    """The drawn token's own probability instead of the slot's largest."""

    def own(block: Any) -> Any:
        ids_RK1 = block.draft_ids_RK[..., None]
        block.confidence_RK = block.draft_probs_RKV.gather(-1, ids_RK1)[..., 0]
        return block

    texts, _ = run(restless(COST), 40_000, drafter=headless(own))
    assert min(p_values(texts, PLAIN)) < 1e-4


def test_an_informed_head_that_sees_the_token_itself_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dspark.drafters.dspark.informed._one_later", lambda x_RKn: x_RKn)
    texts, requests = run(causal(PolicyTables(COST), BLOCK), 8_000, head=True)
    assert len(lengths_by_first_token(requests)) >= 2
    assert min(p_values(texts, PLAIN)) < 1e-4


@pytest.mark.parametrize("rule", RULES)
def test_looking_past_a_dip_is_caught(rule: str) -> None:
    texts, requests = run(Retrospective(), 8_000, rule=rule)
    assert len(lengths_by_first_token(requests)) >= 2
    assert min(p_values(texts, PLAIN)) < 1e-4


def test_the_same_costs_without_looking_on_are_fine() -> None:
    texts, _ = run(Alone(), 16_000)
    assert min(p_values(texts, PLAIN)) > 1e-4


class Peeking(Policy):
    """Verifies a token or not by what that very token is."""

    name, draft_len = "peeking", BLOCK

    def lengths(self, decision: DraftDecision, drafts: Any) -> Sequence[int]:
        ids_RK = drafts.draft_ids_RK.numpy()
        return [int(np.argmax([*(ids_K % 2 == 0), True])) for ids_K in ids_RK]


class Cutting(Policy):
    """Verifies a token or not by what the tokens before it are."""

    name, draft_len = "cutting", BLOCK

    def lengths(self, decision: DraftDecision, drafts: Any) -> Sequence[int]:
        ids_RK = drafts.draft_ids_RK.numpy()
        return [min(int(np.argmax([*(ids_K % 2 == 0), True])) + 1, BLOCK) for ids_K in ids_RK]


@pytest.mark.parametrize("rule", RULES)
def test_a_stop_that_peeks_at_the_token_it_cuts_is_caught(rule: str) -> None:
    peeking, cutting = (run(kind(), 8_000, rule=rule)[0] for kind in (Peeking, Cutting))
    assert min(p_values(peeking, PLAIN)) < 1e-4
    assert min(p_values(cutting, PLAIN)) > 1e-4


def test_confidences_hang_on_the_draft() -> None:
    """Else nothing above would be tested."""
    drafter: Any = random_drafter(TableTarget(stop_ids=[STOP]), BLOCK, gain=20.0, seed=1)
    previous = drafter.markov_head.previous(torch.arange(7))
    assert float(np.ptp((previous @ torch.ones(previous.shape[1])).numpy())) > 1
