"""Chain drafters: training sees what drafting sees, and the engine's text stays the target's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark.core import SamplingParams
from dspark.data.states import SequenceStates
from dspark.drafters.checkpoint import load_drafter, save_drafter
from dspark.drafters.registry import make_drafter
from dspark.engine.engine import Engine
from dspark.errors import ConfigError
from dspark.maths.losses import LossWeights
from dspark.targets.target import Target, load_target
from dspark.training import trainer
from dspark.training.packing import pack
from dspark.training.position_batch import make_position_batch
from dspark.training.sequences import AnchorDraw, TrainingSequence
from fakes import tiny_target_folder
from scripted import answer, drafter_config, random_drafter, whole_blocks
from tiny import tiny_home, tiny_recipe

KINDS = ["eagle3", "mtp"]
K = 4
ALL = AnchorDraw(1, 0, 0)  # of which chains take nothing
PAPER = LossWeights(ce=0.1, tv=0.9, bce=1.0, decay=4.0)
PROMPTS = [[1, 20, 30], [9], list(range(40, 65)), [50, 51] * 6]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(tiny_target_folder(tmp_path_factory.mktemp("target")), "float32")


def chain(target: Target, kind: str, **more: Any) -> Any:
    drafter = random_drafter(target, K, kind=kind, **more)
    torch.manual_seed(1)
    for weight in drafter.parameters():
        weight.data += 0.1 * torch.randn(weight.shape)
    return drafter


def seen(target: Target, drafter: Any, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Last states, and what the drafter reads of the target."""
    last, taps = target.states([ids], drafter.config.target_layer_ids)
    return last, last if taps is None else taps


def sequence(target: Target, drafter: Any, key: str, prompt: int, answer: int) -> TrainingSequence:
    ids = torch.randint(5, 158, (prompt + answer,), generator=torch.Generator().manual_seed(answer))
    last, taps = seen(target, drafter, ids.tolist())
    norm = target.logits(last[prompt:]).logsumexp(-1)
    states = SequenceStates(taps, last[prompt:], norm, prompt)
    return TrainingSequence(key, ids.numpy(), states)


def batch_of(target: Target, drafter: Any) -> tuple[list[TrainingSequence], Any]:
    sequences = [sequence(target, drafter, "a", 3, 9), sequence(target, drafter, "b", 6, 2)]
    return sequences, pack(drafter, sequences, ALL)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_training_is_drafting_along_the_true_tokens(target: Target, kind: str) -> None:
    """Every position and step: outputs of the packed pass are those of extend and draft, when
    the chain is forced onto the text."""
    drafter = chain(target, kind)
    sequences, batch = batch_of(target, drafter)
    outputs_QKD, q = drafter.chain_outputs(batch), 0
    for s in sequences:
        ids, taps = torch.from_numpy(s.ids_T), s.states.taps_TM
        for i in range(s.states.first - 1, len(ids) - 2):
            cache, rows = drafter.new_cache(1, 64), torch.arange(i + 1)
            drafter.extend(cache, taps[rows], torch.zeros_like(rows), rows, ids[rows + 1])
            told, plain = [cache.output_SD[0]], drafter.layer.finish
            drafter.layer.finish = lambda *a, f=plain, t=told: t.append(f(*a)[0]) or t[-1][None]
            true = iter(ids[i + 2 :].tolist() + [0] * K)
            drafter.to_target_ids = lambda chosen, t=true: torch.full_like(chosen, next(t))
            anchor = int(ids[i + 1])
            drafter.draft(cache, [anchor], [i + 1], [0], [SamplingParams()], None)
            del drafter.layer.finish, drafter.to_target_ids
            for k in range(K):
                if i + 2 + k < len(ids):
                    torch.testing.assert_close(outputs_QKD[q, k], told[k], atol=1e-5, rtol=1e-4)
            q += 1
    assert q == len(outputs_QKD)


def test_labels_and_teacher_rows_position_by_position(target: Target) -> None:
    drafter = chain(target, "mtp")
    sequences, batch = batch_of(target, drafter)
    q = 0
    for s in sequences:
        ids, first = s.ids_T, s.states.first
        for i in range(first - 1, len(ids) - 2):
            assert int(batch.positions_T[batch.rows_Q[q]]) == i
            assert int(batch.next_ids_T[batch.rows_Q[q]]) == ids[i + 1]
            for j in range(K):
                exists = i + 2 + j < len(ids)
                assert bool(batch.label_valid_AK[q, j]) is exists
                if exists:
                    assert int(batch.tokens_QK[q, j]) == ids[i + 1 + j]
                    assert int(batch.labels_QK[q, j]) == ids[i + 2 + j]
                    row = batch.last_ND[q * K + j]
                    assert torch.equal(row, s.states.last_TD[i + 1 + j - first])
            q += 1
    assert q == len(batch.rows_Q)


def test_answers_of_one_token_give_nothing(target: Target) -> None:
    drafter = chain(target, "mtp")
    short = sequence(target, drafter, "s", 4, 1)
    assert make_position_batch([short], ALL, K) is None
    both = make_position_batch([short, sequence(target, drafter, "l", 4, 6)], ALL, K)
    assert both is not None
    assert both.lengths == [9]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_papers(target: Target, kind: str) -> None:
    """Eagle3: -Σ p_t log p_d with 0.8 to the step; MTP: cross-entropy of the true token."""
    drafter = chain(target, kind)
    _, batch = batch_of(target, drafter)
    loss = drafter.loss(batch, PAPER)
    with torch.no_grad():
        log_d = drafter.shared.logits(drafter.norm(drafter.chain_outputs(batch))).log_softmax(-1)
        p_t = target.logits(batch.last_ND).softmax(-1).view_as(log_d)
        k = torch.arange(K)
        if kind == "eagle3":
            cost, weight = -(p_t * log_d).sum(-1), 0.8**k
        else:
            cost = -log_d.gather(-1, batch.labels_QK[..., None])[..., 0]
            weight = torch.exp(-k / PAPER.decay)
        weight = weight * batch.label_valid_AK
        expected = (weight * cost).sum() / weight.sum()
        overlap = torch.minimum(p_t, log_d.exp()).sum(-1)
    torch.testing.assert_close(loss.total.detach(), expected, atol=1e-5, rtol=1e-5)
    valid = batch.label_valid_AK
    torch.testing.assert_close(loss.overlap_AK[valid], overlap[valid], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_weight(target: Target, kind: str) -> None:
    drafter = chain(target, kind).requires_grad_(True)
    _, batch = batch_of(target, drafter)
    drafter.loss(batch, PAPER).total.backward()
    idle = [k for k, p in drafter.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 3}])
@pytest.mark.parametrize("vocabulary", [None, range(0, 160, 2)], ids=["whole", "half"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_the_targets(target: Target, kind: str, vocabulary: Any, params: Any) -> None:
    drafter = chain(target, kind, vocabulary=vocabulary)
    how = SamplingParams(max_new_tokens=24, **params)
    alone = [answer(target, drafter, [p], how, slots=1)[0] for p in PROMPTS]
    assert answer(target, drafter, PROMPTS, how, slots=4) == alone
    if not params:
        assert alone == answer(target, None, PROMPTS, how)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reused_slot_and_a_short_draft(target: Target, kind: str) -> None:
    """What an earlier request or chain left in the cache is never seen."""
    drafter, how = chain(target, kind), SamplingParams(max_new_tokens=16)
    engine = Engine(target, drafter, "fixed:2", slots=1)
    before = [r.rounds for r in engine.generate(PROMPTS, how)]
    fresh = [Engine(target, drafter, "fixed:2", slots=1).generate([p], how)[0] for p in PROMPTS]
    assert before == [r.rounds for r in fresh]
    assert all(record.drafted == 2 for record in before[0])


@pytest.mark.parametrize("kind", KINDS)
def test_trained_saved_loaded(tmp_path: Path, kind: str) -> None:
    home = tiny_home(tmp_path)
    recipe = tiny_recipe(
        home,
        tmp_path / "run",
        drafter={"kind": kind, "num_layers": 1, "block_size": 2},
        run={"steps": 30},
    )
    drafter, held_out = trainer.run(recipe)
    assert held_out["accepted_length"] > 1.1
    target = load_target(home / "target", "float32")
    loaded = load_drafter(tmp_path / "run" / "drafter", target)
    assert (loaded.kind, loaded.config.block_size) == (kind, 2)
    again = load_drafter(save_drafter(drafter, tmp_path / "again"), target)
    prompts = [target.encode(f"count {n}") for n in range(4)]
    how = SamplingParams(max_new_tokens=12)
    rounds = [
        [r.rounds for r in Engine(target, d, whole_blocks(d)).generate(prompts, how)]
        for d in (loaded, again)
    ]
    assert rounds[0] == rounds[1]
    assert np.mean([record.committed for r in rounds[0] for record in r]) > 1.05


def test_two_layers_are_refused(target: Target) -> None:
    with pytest.raises(ConfigError, match="one layer"):
        make_drafter(drafter_config(target, K, kind="eagle3", num_layers=2))
