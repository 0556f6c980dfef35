"""How a step is cut — into micro-batches, between processes — leaves no trace in the result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from dspark.artifacts import read_jsonl
from dspark.config import TrainConfig
from dspark.errors import ConfigError
from dspark.maths.losses import DraftLoss, LossWeights, StepTotals
from dspark.signals import note_interrupts
from dspark.training import parallel as module
from dspark.training.parallel import LossModule, Parallel
from dspark.training.trainer import Trainer
from tiny import tiny_home, tiny_recipe

STEPS = 6


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So few answers that an epoch ends within the run."""
    torch.set_num_threads(1)
    return tiny_home(tmp_path_factory.mktemp("small"), count=8)


@pytest.fixture(scope="module")
def recipe(small: Path) -> Callable[..., TrainConfig]:
    """A recipe whose epochs end with a step of a single sequence: too few for two."""
    answers = len(Trainer(tiny_recipe(small, small / "none")).train)
    size = next(n for n in range(3, answers) if answers % n == 1)
    assert answers // size < STEPS  # that step is among those we run

    def build(out: Path, **run: Any) -> TrainConfig:
        run = {"steps": STEPS, "sequences_per_step": size, "log_every": 1, "keep_at": [], **run}
        return tiny_recipe(small, out, run=run, optim={"schedule": "constant"})

    return build


@pytest.fixture(scope="module")
def whole(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, every step in one piece."""
    out = tmp_path_factory.mktemp("whole")
    Trainer(recipe(out)).run()
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(out / "train_log.jsonl"))


def assert_same(a: Path, b: Path) -> None:
    """Equal curves, counts and float32 weights, but for the rounding of sums."""
    assert [(r["kind"], r["step"]) for r in rows(a)] == [(r["kind"], r["step"]) for r in rows(b)]
    for left, right in zip(rows(a), rows(b), strict=True):
        assert left["total_anchors"] == right["total_anchors"]
        for name in ("loss", "ce", "tv", "bce", "accepted_length"):
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=2e-5), name
        assert left["acceptance"] == pytest.approx(right["acceptance"], abs=2e-4)
    theirs = load_file(b / "state" / "model.safetensors")
    for name, value in load_file(a / "state" / "model.safetensors").items():
        # Adam turns the rounding of a gradient near zero into up to 1e-5 on some processors.
        torch.testing.assert_close(value, theirs[name], atol=5e-5, rtol=0, msg=name)


# ------------------------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("pieces", [2, 50])
def test_micro_batches_change_nothing(
    recipe: Any, whole: Path, tmp_path: Path, pieces: int
) -> None:
    Trainer(recipe(tmp_path, accumulate=pieces)).run()
    assert_same(whole, tmp_path)


def test_a_mean_of_means_would_be_noticed(recipe: Any, whole: Path, tmp_path: Path) -> None:
    """The same run, every micro-batch normalised by its own slots."""
    trainer = Trainer(recipe(tmp_path, accumulate=2))
    real = trainer.drafter.loss

    def own_mean(batch: Any, weights: LossWeights, totals: StepTotals | None = None) -> DraftLoss:
        loss = real(batch, weights)
        return DraftLoss(loss.total / 2, loss.ce / 2, loss.tv / 2, loss.bce / 2, loss.overlap_AK)

    trainer.drafter.loss = own_mean  # type: ignore[method-assign]
    trainer.run()
    with pytest.raises(AssertionError):
        assert_same(whole, tmp_path)


def test_the_number_of_micro_batches_may_change(recipe: Any, whole: Path, tmp_path: Path) -> None:
    Trainer(recipe(tmp_path, steps=3)).run()
    Trainer(recipe(tmp_path, accumulate=2)).run()
    train = [r["loss"] for r in rows(tmp_path) if r["kind"] == "train"]
    assert train == pytest.approx([r["loss"] for r in rows(whole)][:STEPS], rel=1e-4)


# ----------------------------------------------------------------------------------- processes

CHILD = """
import sys
import torch
from dspark.cli.main import main
from dspark.training.recipe import read_recipe
from dspark.training.trainer import run

torch.set_num_threads(1)
run(read_recipe(sys.argv[1], ["run.steps=3"]))
sys.exit(main(["train", "--config", sys.argv[1]]))
"""


def toml(tree: dict[str, Any]) -> str:
    """A recipe as a file."""
    lines = [f"{key} = {value!r}" for key, value in tree.items() if not isinstance(value, dict)]
    for name, section in tree.items():
        if isinstance(section, dict):
            lines += [f"[{name}]", toml(section)]
    return "\n".join(lines)


def test_two_processes_are_as_one(recipe: Any, whole: Path, tmp_path: Path) -> None:
    """Half of each step in each process, stopped after 3 steps and taken up again by both."""
    out = tmp_path / "out"
    file, script = tmp_path / "recipe.toml", tmp_path / "child.py"
    config = recipe(out).model_dump(mode="json", exclude_defaults=True)
    config["run"]["minutes"] = 1e6  # TOML has no word for "unset"
    file.write_text(toml(config))
    script.write_text(CHILD)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(script), str(file)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out accepted_length") == 1  # one process speaks for both
    mine = tmp_path / "joined"  # without the measure at the end of the first three steps
    mine.mkdir()
    lines = (out / "train_log.jsonl").read_text().splitlines(keepends=True)
    assert [row["kind"] for row in rows(out)][3] == "held_out"
    (mine / "train_log.jsonl").write_text("".join(lines[:3] + lines[4:]))
    (out / "state").rename(mine / "state")
    assert_same(whole, mine)


def test_a_process_without_a_batch_takes_part_with_nothing(recipe: Any, tmp_path: Path) -> None:
    drafter = Trainer(recipe(tmp_path)).drafter
    loss = LossModule(drafter)(None, LossWeights(1.0, 1.0, 1.0, 4.0), StepTotals(1.0, 1.0))
    assert float(loss.total.detach()) == 0
    loss.total.backward()
    for name, parameter in drafter.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_one_process_sends_nothing() -> None:
    alone = Parallel()
    assert (alone.rank, alone.world, alone.is_main) == (0, 1, True)
    assert alone.total(1.5, 2) == [1.5, 2]
    assert alone.gather("x") == ["x"]
    alone.wait()


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sharding:
        distributed_type = DistributedType.FSDP

        def __init__(self, **_: Any) -> None: ...

    monkeypatch.setattr(module, "Accelerator", Sharding)
    with pytest.raises(ConfigError, match=r"not weights.*FSDP.*--multi_gpu"):
        Parallel()


def test_processes_that_see_different_states_are_refused(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(recipe(tmp_path))
    monkeypatch.setattr(trainer.parallel, "gather", lambda value: [value, 7])
    with pytest.raises(ConfigError, match=r"do not see the same state.*\[None, 7\].*share"):
        trainer.resume()


def test_the_others_write_nothing(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    trainer = Trainer(recipe(tmp_path, keep_at=[0.5], eval_every_minutes=1e-9), told.append)
    trainer.parallel.rank = 1
    monkeypatch.setattr(trainer, "_batches", lambda visit: [])  # its part is another's here
    assert trainer.run() == {}
    assert trainer.counters.step == STEPS
    assert not told
    assert not list(tmp_path.iterdir())


def test_an_interrupt_that_came_to_another_process_stops_this_one(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(recipe(tmp_path))
    real = trainer._agree
    monkeypatch.setattr(
        trainer, "_agree", lambda s, came: real(s, [True] if trainer.counters.step == 2 else came)
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.counters.step == 2
    assert (tmp_path / "state" / "counters.json").is_file()


def test_interrupts_are_noted_however_many() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with note_interrupts() as came:
            assert not came
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            assert len(came) == 3
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
