"""On a GPU the same things come out as on a CPU. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark.artifacts import read_jsonl
from dspark.core import SamplingParams
from dspark.data.prompts import Prompt
from dspark.drafters.checkpoint import load_drafter
from dspark.engine.engine import Engine
from dspark.regeneration.batches import make_batch
from dspark.regeneration.graph_decoder import GraphDecoder, suits
from dspark.regeneration.plain_batch import PlainBatch
from dspark.regeneration.regenerate import run
from dspark.targets.target import Target, load_target
from dspark.training.trainer import Trainer
from scripted import texts
from tiny import tiny_home, tiny_recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

KINDS: dict[str, dict[str, Any]] = {
    "dspark": {"kind": "dspark", "confidence_head": True},
    "gated": {"kind": "dspark", "markov_head_type": "gated", "draft_vocab_size": 100},
    "rnn": {"kind": "dspark", "markov_head_type": "rnn"},
    "residual_rnn": {"markov_head_type": "residual_rnn"},
    "refined": {"markov_head_type": "refined", "draft_vocab_size": 100},
    "candidates": {"markov_head_type": "selector", "candidates": 16},
    "dpace": {"markov_head_type": "vanilla"},
    "dflash": {"kind": "dflash"},
    "eagle3": {"kind": "eagle3"},
    "mtp": {"kind": "mtp"},
}

LOSSES: dict[str, dict[str, Any]] = {
    "refined": {"base": 0.6, "free": 0.3, "tv": [[0.0, 0.0], [1.0, 0.9]], "kl": [[0, 1], [1, 0]]},
    "candidates": {"base": 1.0, "greedy": 0.3},
    "dpace": {"slots": "dpace", "log_overlap": 0.3, "greedy": 0.2, "length": 0.4},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def targets(home: Path) -> dict[str, Target]:
    return {device: load_target(home / "target", "float32", device) for device in ("cpu", "cuda")}


@pytest.fixture(scope="module")
def trained(home: Path, targets: dict[str, Target]) -> Path:
    trainer = Trainer(
        tiny_recipe(home, home / "run", drafter=KINDS["dspark"]), target=targets["cuda"]
    )
    trainer.run()
    return trainer.out / "drafter"


@pytest.mark.parametrize("kind", KINDS)
def test_first_steps_of_training(
    kind: str, home: Path, tmp_path: Path, targets: dict[str, Target]
) -> None:
    """The same losses, hence the same gradients: each step's loss follows from those before."""
    curves = {}
    for device, target in targets.items():
        lines: list[dict[str, Any]] = []
        sections = {"drafter": KINDS[kind], "loss": LOSSES.get(kind, {})}
        run_for = {"steps": 6, "log_every": 1}
        recipe = tiny_recipe(home, tmp_path / device, **sections, run=run_for)
        trainer = Trainer(recipe, lines.append, target=target)
        assert trainer.drafter.device.type == device
        trainer.run()
        curves[device] = [line["loss"] for line in lines]
    assert len(curves["cuda"]) >= 6
    assert curves["cuda"] == pytest.approx(curves["cpu"], rel=2e-3)


@pytest.mark.parametrize("policy", ["off", "fixed:3"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_same_texts(
    policy: str, temperature: float, targets: dict[str, Target], trained: Path
) -> None:
    """Float32, uneven batches: the engine's words do not depend on the device."""
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, 150, (3 + 5 * n,), generator=draw).tolist() for n in range(7)]
    params = SamplingParams(temperature=temperature, seed=3, max_new_tokens=24)
    said = {}
    for device, target in targets.items():
        drafter = load_drafter(trained, target)
        engine = Engine(target, drafter, policy, slots=4, max_len=96)
        said[device] = texts(engine.generate(prompts, params))
        assert policy == "off" or engine.stats.committed > engine.stats.steps
    same = sum(a == b for a, b in zip(said["cpu"], said["cuda"], strict=True))
    assert same >= 6, "rounding may turn one text"


def test_recorded_steps(targets: dict[str, Target]) -> None:
    """A step replayed gives the logits of the same step run call by call, in each length."""
    target = targets["cuda"]
    assert suits(target)
    replayed, eager = (GraphDecoder(target, 4, 96, lengths=(32, 64)) for _ in range(2))
    assert replayed.captured
    eager._graphs = {}
    prompts = [(2, list(range(5, 25))), (0, [9, 8, 7])]
    for decoder in (replayed, eager):
        decoder.prefill(prompts)
    positions = np.array([3, 0, 20, 0])
    for n in range(60):  # past both shorter lengths
        ids = (np.arange(4) * 13 + 7 * n) % 150 + 5
        logits = replayed.step(ids, positions).clone()
        torch.testing.assert_close(logits, eager.step(ids, positions), atol=1e-4, rtol=1e-4)
        positions[[0, 2]] += 1
    assert logits.isfinite().all()
    assert not torch.allclose(logits[0], logits[2])


def test_answers_by_recorded_steps(targets: dict[str, Target], tmp_path: Path) -> None:
    """`regenerate` takes recorded steps by itself and says what the CPU's engine says."""
    prompts = [
        Prompt(f"p{i}", [{"role": "user", "content": f"count to {i}"}], "chat") for i in range(40)
    ]
    rows = {}
    for device, target in targets.items():
        path = tmp_path / f"{device}.jsonl"
        run(target, prompts, path, max_new_tokens=24, max_len=96, slots=6)
        rows[device] = {row["id"]: row["response_ids"] for row in read_jsonl(path)}
    assert isinstance(make_batch(targets["cuda"], 2, 64), PlainBatch)
    assert rows["cuda"].keys() == rows["cpu"].keys()
    same = sum(rows["cuda"][name] == ids for name, ids in rows["cpu"].items())
    assert same >= len(prompts) - 2, "rounding may turn a text"
