"""Our drafters against recorded outputs of the public DeepSpec implementation (tests/golden)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dspark.core import SamplingParams
from dspark.drafters.block.heads import MarkovHead, RNNHead
from dspark.drafters.block.losses import BlockOutputs
from dspark.drafters.checkpoint import load_standalone
from dspark.drafters.dflash import DFlashDrafter
from dspark.maths.losses import LossWeights, Teacher, draft_loss
from dspark.targets.layers import pack_linears

GOLDEN = Path(__file__).parents[1] / "golden"
PAPER = LossWeights(ce=0.1, tv=0.9, bce=1.0, decay=4.0)
CE_ONLY = LossWeights(ce=1.0, tv=0.0, bce=0.0, decay=4.0)


class Golden(NamedTuple):
    name: str
    drafter: Any
    recorded: dict[str, Tensor]

    @property
    def valid(self) -> Tensor:
        return self.recorded["label_valid"][0]


@pytest.fixture(params=["vanilla", "rnn", "dflash"])
def golden(request: pytest.FixtureRequest) -> Golden:
    folder = GOLDEN / request.param
    recorded = load_file(folder / "golden.safetensors")
    return Golden(request.param, load_standalone(folder), recorded)


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def training_view(golden: Golden) -> BlockOutputs:
    recorded = golden.recorded
    anchors, ids = recorded["anchors"], recorded["input_ids"][0]
    labels = recorded["labels"][0].masked_fill(~golden.valid, 0)
    return golden.drafter.block_outputs(
        recorded["taps"][0], [len(ids)], [anchors], ids[anchors], labels
    )


def teacher(golden: Golden) -> Teacher:
    """Target states at anchor + k - 1; past the end any row will do, as its slot is masked."""
    states, anchors = golden.recorded["target_last_hidden"][0], golden.recorded["anchors"]
    steps = torch.arange(golden.drafter.config.block_size)
    rows = (anchors[:, None] + steps).clamp(max=len(states) - 1).flatten()
    head = golden.drafter.shared.head
    return Teacher(states[rows], (states[rows] @ head.T).logsumexp(-1), head)


def test_the_right_heads_are_built(golden: Golden) -> None:
    head = golden.drafter.markov_head
    if golden.name == "dflash":
        assert isinstance(golden.drafter, DFlashDrafter)
        assert head is None
        assert not golden.drafter.config.gives_confidence
    else:
        assert type(head) is {"vanilla": MarkovHead, "rnn": RNNHead}[golden.name]


@torch.no_grad()
def test_training_view(golden: Golden) -> None:
    out, recorded, valid = training_view(golden), golden.recorded, golden.valid
    drafter = golden.drafter
    near(out.hidden_AKD[valid], recorded["draft_hidden"][0][valid])
    base = drafter.shared.logits(out.hidden_AKD)
    near(base[valid], recorded["base_logits"][0][valid])
    logits = base if out.features_AKr is None else base + drafter.markov_head.bias(out.features_AKr)
    near(logits[valid], recorded["draft_logits"][0][valid])
    if golden.name == "dflash":
        assert out.confidence_AK is None
        near(recorded["draft_logits"], recorded["base_logits"])
    else:
        assert out.confidence_AK is not None
        near(out.confidence_AK[valid], recorded["confidence_logits"][0][valid])
        assert not torch.allclose(base[valid], logits[valid], atol=1e-2)


def test_teacher_rows_are_the_positions_before_the_labels(golden: Golden) -> None:
    given = teacher(golden)
    logits = (given.last_ND @ given.head_VD.T).view(golden.recorded["target_logits"][0].shape)
    near(logits[golden.valid], golden.recorded["target_logits"][0][golden.valid])


@pytest.mark.parametrize(("key", "weights"), [("loss_paper", PAPER), ("loss_ce", CE_ONLY)])
def test_losses(golden: Golden, key: str, weights: LossWeights) -> None:
    out, head = training_view(golden), golden.drafter.markov_head
    loss = draft_loss(
        out.hidden_AKD,
        out.features_AKr,
        None if head is None else head.markov_w2.weight,
        out.confidence_AK,
        teacher(golden),
        golden.recorded["labels"][0].masked_fill(~golden.valid, 0),
        golden.valid,
        weights,
    )
    near(loss.total[None].detach(), golden.recorded[key])


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_inference_view(golden: Golden, packed: bool) -> None:
    drafter, recorded = golden.drafter, golden.recorded
    if packed:
        pack_linears(drafter)
    hidden: list[Tensor] = []
    drafter.backbone.register_forward_hook(lambda *call: hidden.append(call[2]))
    anchor, ids = int(recorded["block_anchor"]), recorded["input_ids"][0]
    cache = drafter.new_cache(1, len(ids))
    rows = torch.arange(anchor)
    drafter.extend(
        cache, recorded["taps"][0][:anchor], torch.zeros_like(rows), rows, ids[1 : anchor + 1]
    )
    block = drafter.draft(cache, [int(ids[anchor])], [anchor], [0], [SamplingParams()], None)

    assert block.draft_ids_RK.tolist() == recorded["block_tokens_greedy"].tolist()
    near(hidden[0], recorded["block_hidden"][0])
    logits = drafter.shared.logits(hidden[0][None])
    if golden.name == "dflash":
        assert block.confidence_RK is None
    else:
        near(block.confidence_RK, recorded["block_confidence_logits"].sigmoid())
        previous = torch.cat([ids[None, anchor : anchor + 1], block.draft_ids_RK[:, :-1]], 1)
        head = drafter.markov_head
        logits = logits + head.bias(head.features(head.previous(previous), hidden[0][None]))
    near(logits, recorded["block_logits"])
