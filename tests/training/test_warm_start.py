"""Warm starts: what was learned is there at once, what is new adds nothing, misfits are named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dspark.drafters.checkpoint import load_drafter, read_checkpoint, save_drafter
from dspark.drafters.drafter import Drafter
from dspark.drafters.registry import make_drafter
from dspark.errors import CheckpointError, ConfigError
from dspark.targets.target import Target
from dspark.training.batches import training_sequences
from dspark.training.packing import pack
from dspark.training.sequences import AnchorDraw
from dspark.training.trainer import Trainer
from tiny import tiny_recipe

SOME = 100  # tokens of a reduced draft vocabulary
STARTS: dict[str, dict[str, Any]] = {
    "dspark": {},
    "gated": {"markov_head_type": "gated"},
    "rnn": {"markov_head_type": "rnn"},
    "refined": {"markov_head_type": "refined"},
    "dflash": {"kind": "dflash"},
    "eagle3": {"kind": "eagle3"},
    "mtp": {"kind": "mtp", "block_size": 2},
    "reduced": {"draft_vocab_size": SOME},
}


@pytest.fixture(scope="module")
def starts(home: Path, target: Target, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of a few steps, by name."""
    torch.set_num_threads(1)
    runs = {}
    for name, shape in STARTS.items():
        out = tmp_path_factory.mktemp("starts") / name
        Trainer(
            tiny_recipe(home, out, drafter=shape, run={"steps": 8, "keep_at": []}), target=target
        ).run()
        runs[name] = out
    return runs


def begun(
    home: Path, out: Path, target: Target, start: Path, shape: dict[str, Any], **more: Any
) -> Trainer:
    recipe = tiny_recipe(home, out, drafter={**shape, "start": str(start)}, **more)
    return Trainer(recipe, target=target)


def logits(trainer: Trainer, drafter: Drafter) -> Tensor:
    """What a drafter says along held-out answers, [N, K, V]."""
    answers = trainer.held_out[:4]
    states = trainer.held_out_states.get(answers)
    batch: Any = pack(drafter, training_sequences(answers, states), AnchorDraw(8, 0, 0))
    judged: Any = drafter
    with torch.no_grad():
        return torch.cat(list(judged.logits_along(batch, 64)))


def as_trained(start: Path, target: Target) -> Any:
    return load_drafter(start / "drafter", target, pack=False).float().requires_grad_(False)


@pytest.mark.parametrize(
    ("start", "shape"),
    [
        ("dspark", {}),
        ("dspark", {"num_layers": 3}),
        ("dspark", {"markov_rank": 40}),
        ("dspark", {"markov_head_type": "gated", "markov_rank": 24, "num_layers": 2}),
        ("dspark", {"markov_head_type": "residual_rnn"}),
        ("dspark", {"markov_head_type": "refined", "markov_rank": 20}),
        ("dspark", {"markov_head_type": "selector"}),
        ("refined", {"markov_head_type": "refined", "num_layers": 2}),
        ("dspark", {"confidence_head": False}),
        ("gated", {"markov_head_type": "gated", "markov_rank": 30}),
        ("rnn", {"markov_head_type": "rnn", "num_layers": 2}),
        ("dflash", {"kind": "dflash", "num_layers": 2}),
        ("eagle3", {"kind": "eagle3"}),
        ("mtp", {"kind": "mtp", "block_size": 2}),
        ("reduced", {"draft_vocab_size": SOME, "markov_rank": 20}),
    ],
)
def test_it_begins_by_saying_what_was_learned(
    start: str,
    shape: dict[str, Any],
    home: Path,
    tmp_path: Path,
    target: Target,
    starts: dict[str, Path],
) -> None:
    trainer = begun(home, tmp_path, target, starts[start], shape)
    before = as_trained(starts[start], target)
    torch.testing.assert_close(
        logits(trainer, trainer.drafter), logits(trainer, before), atol=1e-4, rtol=1e-4
    )
    if before.d2t is not None:
        assert torch.equal(before.d2t, trainer.drafter.d2t)


@pytest.mark.parametrize(
    ("start", "shape"),
    [
        ("dspark", {"markov_head_type": "rnn"}),
        ("gated", {"markov_head_type": "vanilla"}),
        ("rnn", {"markov_head_type": "gated"}),
        ("dflash", {"kind": "dspark"}),
        ("dspark", {"kind": "dflash"}),
    ],
)
def test_another_head_begins_with_no_bias(
    start: str,
    shape: dict[str, Any],
    home: Path,
    tmp_path: Path,
    target: Target,
    starts: dict[str, Path],
) -> None:
    trainer = begun(home, tmp_path, target, starts[start], shape)
    before = as_trained(starts[start], target)
    with_head = logits(trainer, before)
    if before.markov_head is not None:
        before.markov_head.markov_w2.weight.zero_()
    alone = logits(trainer, before)
    torch.testing.assert_close(logits(trainer, trainer.drafter), alone, atol=1e-4, rtol=1e-4)
    if before.markov_head is not None:
        assert not torch.allclose(with_head, alone, atol=1e-3)  # the head had learned something


def test_confidences_are_kept_as_well(
    home: Path, tmp_path: Path, target: Target, starts: dict[str, Path]
) -> None:
    same = begun(home, tmp_path / "a", target, starts["dspark"], {"markov_rank": 24})
    before: Any = as_trained(starts["dspark"], target)
    weight = same.drafter.state_dict()["confidence_head.proj.weight"]
    old = before.confidence_head.proj.weight
    assert torch.equal(weight[:, : old.shape[1]], old)
    assert not weight[:, old.shape[1] :].any()
    fresh = begun(home, tmp_path / "b", target, starts["dflash"], {})
    assert not fresh.drafter.state_dict()["confidence_head.proj.weight"].any()


def test_a_larger_vocabulary_keeps_what_is_known_of_each_token(
    home: Path, tmp_path: Path, target: Target, starts: dict[str, Path]
) -> None:
    trainer = begun(home, tmp_path, target, starts["reduced"], {"draft_vocab_size": SOME + 30})
    before: Any = as_trained(starts["reduced"], target)
    mine, old = logits(trainer, trainer.drafter), logits(trainer, before)
    columns = trainer.drafter.to_draft_ids(before.d2t)
    known = columns >= 0
    assert known.sum() > SOME // 2
    torch.testing.assert_close(mine[..., columns[known]], old[..., known], atol=1e-4, rtol=1e-4)
    rows = trainer.drafter.state_dict()["markov_head.markov_w2.weight"]
    fresh = torch.ones(len(rows), dtype=torch.bool)
    fresh[columns[known]] = False
    assert not rows[fresh].any()


def test_it_learns_on_with_another_loss_and_more_layers(
    home: Path, tmp_path: Path, target: Target, starts: dict[str, Path]
) -> None:
    losses = {"loss": {"ce": 1.0, "tv": 0.0}, "run": {"steps": 6, "keep_at": []}}
    trainer = begun(home, tmp_path, target, starts["dspark"], {"num_layers": 2}, **losses)
    at_first = {name: w.clone() for name, w in trainer.drafter.state_dict().items()}
    trainer.run()
    moved = {
        name
        for name, w in trainer.drafter.state_dict().items()
        if not torch.equal(w, at_first[name])
    }
    assert {"backbone.layers.1.mlp.down_proj.weight", "markov_head.markov_w2.weight"} <= moved


def test_provenance_tells_of_it_and_a_resumed_run_keeps_it(
    home: Path, tmp_path: Path, target: Target, starts: dict[str, Path]
) -> None:
    start = Path(shutil.copytree(starts["dspark"], tmp_path / "first"))
    out, more = tmp_path / "out", {"num_layers": 2}
    short = {"run": {"steps": 4, "keep_at": []}}
    begun(home, out, target, start, more, **short).run()
    shutil.rmtree(start)  # its weights have gone on
    weights = read_checkpoint(out / "drafter")[1]

    longer = {"run": {"steps": 7, "keep_at": []}}
    again = Trainer(tiny_recipe(home, out, drafter=more, **longer), target=target)
    assert again.resume()
    assert again.counters.step == 4
    for name, value in weights.items():
        if name != "d2t":
            own = again.drafter.state_dict()
            kept = own[name if name in own else f"backbone.{name}"]
            torch.testing.assert_close(kept.bfloat16(), value)
    again.run()
    told = json.loads((out / "drafter" / "provenance.json").read_text())
    assert told["config"]["drafter"]["start"] == "first"
    assert told["training"]["step"] == 7
    assert told["start"]["kind"] == "dspark"
    assert told["start"]["step"] == 8
    assert told["start"]["new"] == ["1 more layers, each the identity"]
    assert len(told["start"]["sha256"]) == 64

    # A drafter that began with this one tells of both.
    next_out = tmp_path / "next"
    begun(home, next_out, target, out, more, **short).run()
    told = json.loads((next_out / "drafter" / "provenance.json").read_text())
    assert told["start"]["start"]["name"] == "first"

    with pytest.raises(ConfigError, match=r"drafter\.start was .*first, is "):
        begun(home, out, target, starts["dflash"], more, **longer)
    with pytest.raises(ConfigError, match=r"drafter\.start was None"):
        begun(home, starts["dspark"], target, starts["dflash"], {}, **longer)


@pytest.mark.parametrize(
    ("start", "shape", "words"),
    [
        ("eagle3", {}, r"drafter\.kind .*recipe dspark, drafter to start from eagle3"),
        ("dspark", {"kind": "mtp"}, r"drafter\.kind"),
        ("dspark", {"markov_rank": 8}, r"drafter\.markov_rank .*recipe 8, .*from 16"),
        ("rnn", {"markov_head_type": "rnn", "markov_rank": 32}, r"drafter\.markov_rank"),
        ("refined", {"markov_head_type": "refined", "block_size": 5}, r"drafter\.block_size"),
        ("dspark", {"target_layer_ids": [0, 1]}, r"drafter\.target_layer_ids"),
        ("dspark", {"intermediate_size": 64}, r"intermediate_size .*recipe 64, .*from 96"),
        ("dspark", {"mask_token_id": 7}, r"drafter\.mask_token_id"),
    ],
)
def test_a_misfit_is_named_before_a_model_loads(
    start: str,
    shape: dict[str, Any],
    words: str,
    home: Path,
    tmp_path: Path,
    starts: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dspark.training.learner.load_target", None)
    recipe = tiny_recipe(home, tmp_path, drafter={**shape, "start": str(starts[start])})
    with pytest.raises(ConfigError, match=words):
        Trainer(recipe)


def test_fewer_layers_are_refused(
    home: Path, tmp_path: Path, target: Target, starts: dict[str, Path]
) -> None:
    deep = tmp_path / "deep"
    begun(
        home, deep, target, starts["dspark"], {"num_layers": 2}, run={"steps": 1, "keep_at": []}
    ).run()
    with pytest.raises(ConfigError, match=r"drafter\.num_layers .*recipe 1, .*from 2"):
        begun(home, tmp_path / "flat", target, deep, {})


def test_a_drafter_of_another_target_is_named(
    home: Path, tmp_path: Path, target: Target, starts: dict[str, Path]
) -> None:
    config, _ = read_checkpoint(starts["dspark"] / "drafter")
    other = make_drafter(replace(config, hidden_size=2 * config.hidden_size))
    save_drafter(other, tmp_path / "other")
    with pytest.raises(ConfigError, match="cannot go on from that drafter: hidden_size"):
        begun(home, tmp_path / "out", target, tmp_path / "other", {})


def test_what_is_not_there_and_what_is_damaged(
    home: Path, tmp_path: Path, target: Target, starts: dict[str, Path]
) -> None:
    with pytest.raises(CheckpointError, match=r"There is no drafter .*nowhere to start from"):
        begun(home, tmp_path, target, tmp_path / "nowhere", {})
    broken = Path(shutil.copytree(starts["dspark"] / "drafter", tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="Cannot read the drafter"):
        begun(home, tmp_path / "out", target, broken, {})


def test_another_split_is_said(
    home: Path,
    tmp_path: Path,
    target: Target,
    starts: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun(home, tmp_path / "a", target, starts["dspark"], {})
    assert not caplog.messages
    begun(home, tmp_path / "b", target, starts["dspark"], {}, data={"seed": 3})
    assert "held out other answers" in caplog.messages[0]
