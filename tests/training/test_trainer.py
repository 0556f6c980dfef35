"""Whole training runs on a tiny target: they learn, survive a kill, refuse what does not fit."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dspark.artifacts import read_jsonl
from dspark.config import TrainConfig
from dspark.drafters.checkpoint import load_drafter
from dspark.errors import CheckpointError, ConfigError
from dspark.signals import hold_interrupt
from dspark.targets.target import Target, load_target
from dspark.training import trainer as module
from dspark.training.trainer import Trainer
from dspark.training.trainer import run as run_training
from fakes import write_responses
from tiny import tiny_home, tiny_recipe

Make = Callable[..., Trainer]


@pytest.fixture
def make(home: Path, tmp_path: Path, target: Target) -> Make:
    """A trainer below tmp_path/out whose target is loaded already."""

    def build(out: str = "out", **sections: Any) -> Trainer:
        return Trainer(tiny_recipe(home, tmp_path / out, **sections), target=target)

    return build


@pytest.fixture(scope="module")
def through(home: Path, tmp_path_factory: pytest.TempPathFactory, target: Target) -> Trainer:
    """The usual run, finished without an interruption."""
    torch.set_num_threads(1)
    trainer = Trainer(tiny_recipe(home, tmp_path_factory.mktemp("through")), target=target)
    trainer.run()
    return trainer


def log(trainer: Trainer) -> list[dict[str, Any]]:
    """Rows of the log without what depends on the clock."""
    clock = {"minutes", "anchors_per_s"}
    rows = read_jsonl(trainer.out / "train_log.jsonl")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in log(trainer) if row["kind"] == "train"]


def assert_same_run(a: Trainer, b: Trainer, atol: float = 0.0) -> None:
    """Equal curves and equal weights; exactly, unless states were computed in other company."""
    left, right = log(a), log(b)
    assert [(r["kind"], r["step"]) for r in left] == [(r["kind"], r["step"]) for r in right]
    for x, y in zip(left, right, strict=True):
        assert x.keys() == y.keys()
        for name in x.keys() - {"kind"}:
            assert x[name] == pytest.approx(y[name], abs=2e-4 if atol else 0, rel=0), name
    theirs = b.drafter.state_dict()
    for name, value in a.drafter.state_dict().items():
        torch.testing.assert_close(value, theirs[name], atol=atol, rtol=0)


# --------------------------------------------------------------------------------------- learning


def test_learns_what_the_target_says(make: Make) -> None:
    trainer = make(run={"steps": 80})
    before = trainer.measure_held_out()
    after = trainer.run()
    curve = losses(trainer)
    assert sum(curve[-3:]) < 0.75 * sum(curve[:3])
    # Chance is what fresh weights reach; the bound is far above it for every slot.
    assert before["acceptance"][1] < 0.05
    assert after["acceptance"][0] > before["acceptance"][0] + 0.15
    assert all(a > 0.3 for a in after["acceptance"])
    assert after["accepted_length"] > 2.1 > 1.5 > before["accepted_length"]
    assert after["bce"] < math.log(2) - 0.1
    last = log(trainer)[-1]
    assert last["kind"] == "held_out"
    assert last["step"] == 80
    assert last["accepted_length"] == after["accepted_length"]


@pytest.mark.parametrize(
    "sections",
    [
        {"drafter": {"kind": "dflash"}},
        {"drafter": {"markov_head_type": "gated"}},
        {"drafter": {"markov_head_type": "rnn"}},
        {"drafter": {"markov_head_type": "residual_rnn"}},
        {"drafter": {"markov_head_type": "refined"}, "loss": {"base": 0.6, "free": 0.3}},
        {"drafter": {"markov_head_type": "selector", "candidates": 16}, "loss": {"base": 1.0}},
        {"drafter": {"draft_vocab_size": 60}},
        {"drafter": {"markov_rank": 0, "confidence_head": False}},
        {"drafter": {"num_layers": 2, "target_layer_ids": [1, 3]}},
        {"optim": {"name": "muon", "schedule": "linear", "lr": 2e-2}},
        {"run": {"dtype": "bfloat16"}},
        {"loss": {"tv": [[0.2, 0.0], [0.6, 0.9]], "kl": [[0.2, 1.0], [0.6, 0.0]]}},
        {"loss": {"log_overlap": 0.5, "greedy": 0.5, "tv": 0.0}},
        {"loss": {"slots": "dpace", "ce": 1.0, "tv": 0.0}},
    ],
    ids=str,
)
def test_every_kind_trains_by_a_line_of_the_recipe(
    home: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    config = tiny_recipe(home, tmp_path, **sections)
    drafter, measured = run_training(config)
    rows = list(read_jsonl(tmp_path / "train_log.jsonl"))
    curve = [row["loss"] for row in rows if row["kind"] == "train"]
    assert curve[-1] < 0.85 * curve[0]
    assert measured["accepted_length"] > 1.6
    assert all(torch.isfinite(p).all() for p in drafter.parameters())
    assert all(p.dtype == torch.float32 for p in drafter.parameters())
    target = load_target(home / "target", "float32")
    loaded = load_drafter(tmp_path / "drafter", target, pack=False)
    assert loaded.config.kind == drafter.config.kind == config.drafter.kind
    theirs = loaded.state_dict()
    for name, value in drafter.state_dict().items():
        stored = value.bfloat16().float() if value.is_floating_point() else value
        assert torch.equal(theirs[name], stored), name


@pytest.mark.parametrize("kind", ["residual_rnn", "refined", "selector"])
def test_no_head_begins_behind_the_vanilla_head(make: Make, kind: str) -> None:
    measured = [
        make(drafter={"markov_head_type": name}).measure_held_out() for name in ("vanilla", kind)
    ]
    assert measured[0] == measured[1]


def test_free_rounds_go_on_as_they_were(make: Make) -> None:
    """What they draw follows from the step, so that a resumed run draws the same."""
    sections = {
        "loss": {"free": 0.3, "base": [[0.0, 0.6], [1.0, 0.0]]},
        "run": {"steps": 12, "log_every": 3},
    }
    whole, cut, again = make("whole", **sections), *(make(**sections) for _ in range(2))
    whole.run()
    cut.cache = again.cache = whole.cache
    stop_at(cut, 7, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again.run()
    assert_same_run(again, whole)
    assert all(row["loss_free"] > 0 for row in log(whole))  # held-out rows too


def test_expected_length_as_the_loss(make: Make) -> None:
    trainer = make(loss={"length": 1.0, "ce": 0.0, "tv": 0.0}, run={"steps": 60})
    before, after = trainer.measure_held_out(), trainer.run()
    assert after["accepted_length"] > before["accepted_length"] + 0.4
    # What is learned is what is told, up to blocks that an end of text cuts.
    assert after["loss_length"] == pytest.approx(after["accepted_length"] - 1, abs=0.25)
    assert after["loss"] == pytest.approx(after["bce"] - after["loss_length"], abs=1e-4)


SCHEDULE = {"kl": [[0.0, 1.0], [0.5, 0.0]], "tv": [[0.25, 0.0], [0.75, 0.9]], "length": 0.1}


def test_weights_move_with_the_run_and_a_resumed_one_goes_on_bit_for_bit(make: Make) -> None:
    whole, cut, again = make("whole", loss=SCHEDULE), *(make(loss=SCHEDULE) for _ in range(2))
    whole.run()
    cut.cache = again.cache = whole.cache  # states computed in other company differ in rounding
    stop_at(cut, 7, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    assert 0 < cut.weights.kl < 1
    again.run()
    assert_same_run(again, whole)
    assert (whole.weights.kl, whole.weights.tv) == (0.0, 0.9)
    constant = make("constant", loss={"kl": 1.0, "tv": 0.0, "length": 0.1})
    constant.run()
    assert losses(constant)[0] == pytest.approx(losses(whole)[0], rel=0.2)
    assert losses(constant) != losses(whole)


def test_dflash_learns_from_cross_entropy_alone(make: Make) -> None:
    trainer = make(drafter={"kind": "dflash"})
    batch = trainer._batch(trainer.train[:4], 0)
    assert batch is not None
    loss = trainer.drafter.loss(batch, trainer.weights)
    assert float(loss.total.detach()) == pytest.approx(loss.ce, rel=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_other_families(tmp_path: Path, family: str) -> None:
    extra = {"softcap": 6.0} if family == "gemma3" else {"tie": False}
    home = tiny_home(tmp_path / "home", family, count=12, **extra)
    longer = {"data": {"held_out_share": 0.3}, "run": {"steps": 60}}
    trainer = Trainer(tiny_recipe(home, tmp_path / "out", **longer))
    before, after = trainer.measure_held_out(), trainer.run()
    assert losses(trainer)[-1] < 0.92 * losses(trainer)[0]
    assert after["accepted_length"] > before["accepted_length"] + 0.15


def test_the_gradient_reaches_every_weight(make: Make) -> None:
    trainer = make(drafter={"markov_head_type": "gated"})
    batch = trainer._batch(trainer.train[:8], 0)
    assert batch is not None
    trainer.drafter.confidence_head.proj.weight.data.normal_()  # zero at first, blocks nothing
    trainer.drafter.loss(batch, trainer.weights).total.backward()
    for name, parameter in trainer.drafter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_target_stays_frozen(make: Make, target: Target) -> None:
    head, embedding = target.head_weight.clone(), target.embedding_weight.clone()
    make(run={"steps": 4}).run()
    assert torch.equal(head, target.head_weight)
    assert torch.equal(embedding, target.embedding_weight)


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def test_no_tensor_of_a_whole_batch_over_the_vocabulary(tmp_path: Path) -> None:
    home = tiny_home(tmp_path / "home", count=12, vocab_size=1500, hidden=32, heads=2)
    trainer = Trainer(
        tiny_recipe(
            home,
            tmp_path / "out",
            drafter={"block_size": 8, "markov_rank": 8},
            run={"anchors_per_sequence": 40, "sequences_per_step": 12},
        )
    )
    visit = next(trainer.visits())
    batch = trainer._batch([trainer.train[i] for i in visit.indices], 0)
    assert batch is not None
    rows = batch.labels_AK.numel()
    assert rows > 1500
    with _Largest() as seen:
        trainer.step(visit)
    assert 0 < seen.numel <= 256 * 1500 < rows * 1500 / 5


def test_numbers_that_are_none_stop_the_run(make: Make) -> None:
    trainer = make()
    visit = next(trainer.visits())
    trainer.step(visit)
    trainer.drafter.backbone.fc.weight.data[0, 0] = math.nan
    before = trainer.drafter.markov_head.markov_w2.weight.clone()
    with pytest.raises(ConfigError, match=r"fell apart at step 0 .*lr"):
        trainer.step(visit)
    assert torch.equal(trainer.drafter.markov_head.markov_w2.weight, before)


# ------------------------------------------------------------------------------------ going on

CHILD = """
import json, os, signal, sys
from pathlib import Path
import torch
from dspark.training.recipe import make_recipe
from dspark.training import snapshot, trainer

torch.set_num_threads(1)
save_at, kill_at, inside = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "inside"
real_step, real_write = trainer.Trainer.step, Path.write_bytes

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def step(self, visit):
    if self.counters.step == save_at:
        self.save()
    if self.counters.step == kill_at:
        if inside:
            Path.write_bytes = lambda path, data: (real_write(path, data[:100]), die())
            self.save()
        die()
    real_step(self, visit)

trainer.Trainer.step = step
trainer.run(make_recipe(json.loads(sys.argv[1])))
"""


def killed(config: TrainConfig, save_at: int, kill_at: int, how: str = "between") -> None:
    """Train in another process, which saves once and is killed later."""
    arguments = [config.model_dump_json(), str(save_at), str(kill_at), how]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("how", ["between", "inside"])
def test_kill_9_and_resume_gives_the_same_curve(make: Make, through: Trainer, how: str) -> None:
    """Saved at step 7, between two log lines; killed at 13, after the log lines of 10."""
    again = make("again")
    killed(again.config, 7, 13, how)
    assert [row["step"] for row in log(again)] == [5, 10]
    measured = again.run()
    assert_same_run(through, again, atol=1e-5)
    assert again.counters.anchors == through.counters.anchors
    assert measured["accepted_length"] == log(through)[-1]["accepted_length"]
    left = {p.name for p in again.out.iterdir() if not p.name.startswith(".")}
    assert left == {"state", "drafter", "drafter-25", "drafter-50", "train_log.jsonl"}


def test_an_end_before_the_first_save_begins_anew(make: Make, through: Trainer) -> None:
    first, again = make("again"), make("again")
    stop_at(first, 13, MemoryError())
    with pytest.raises(MemoryError):
        first.run()
    assert len(log(again)) == 2
    again.run()
    assert_same_run(through, again)


def stop_at(trainer: Trainer, step: int, error: BaseException) -> None:
    real = trainer.step

    def guarded(visit: Any) -> None:
        if trainer.counters.step == step:
            raise error
        real(visit)

    trainer.step = guarded  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"optim": {"name": "muon"}},
        {"drafter": {"draft_vocab_size": 60, "markov_head_type": "rnn"}},
        {"run": {"cache_gib": 1e-5, "passes_per_window": 2}},
    ],
    ids=str,
)
def test_ctrl_c_saves_and_a_second_run_goes_on(make: Make, sections: dict[str, Any]) -> None:
    sections = {**sections, "run": {"steps": 18, **sections.get("run", {})}}
    through, first = make("through", **sections), make("again", **sections)
    through.run()
    stop_at(first, 12, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert json.loads((first.out / "state" / "counters.json").read_text())["step"] == 12
    assert (first.out / "drafter" / "model.safetensors").is_file()
    second = make("again", **sections)
    second.run()
    assert second.counters.step == 18
    assert_same_run(through, second, atol=1e-5)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as Python sets it up; a shell may have started the tests with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_a_step_waits_for_its_end(make: Make, through: Trainer) -> None:
    trainer = make()
    real = trainer.step

    def step(visit: Any) -> None:
        if trainer.counters.step == 6:
            signal.raise_signal(signal.SIGINT)
        real(visit)

    trainer.step = step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.counters.step == 7
    assert json.loads((trainer.out / "state" / "counters.json").read_text())["step"] == 7
    again = make()
    again.run()
    assert_same_run(through, again, atol=1e-5)


def interrupted(times: int, done: list[str]) -> None:
    with hold_interrupt():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        done.append("end of the block")


@pytest.mark.usefixtures("ctrl_c")
def test_hold_interrupt() -> None:
    done: list[str] = []
    interrupted(0, done)
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, done)
    assert len(done) == 2
    with pytest.raises(KeyboardInterrupt):
        interrupted(2, done)
    assert len(done) == 2  # a second Ctrl-C does not wait
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ZeroDivisionError), hold_interrupt():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_in_a_thread(make: Make) -> None:
    """Signals belong to the main thread; elsewhere the trainer must not touch them."""
    trainer = make(run={"steps": 3})
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert trainer.counters.step == 3
    assert (trainer.out / "drafter" / "model.safetensors").is_file()


def test_a_finished_run_can_be_made_longer(make: Make) -> None:
    make(run={"steps": 10}).run()
    longer = make(run={"steps": 20, "minutes": 90, "log_every": 4})
    longer.run()
    assert longer.counters.step == 20
    steps = [row["step"] for row in log(longer) if row["kind"] == "train"]
    assert steps == [5, 10, 12, 16, 20]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"drafter": {"block_size": 5}}, "drafter.block_size was 4, is 5"),
        ({"drafter": {"num_layers": 2}}, "drafter.num_layers was 1, is 2"),
        ({"drafter": {"markov_head_type": "rnn"}}, "drafter.markov_head_type"),
        ({"optim": {"lr": 1e-3}}, "optim.lr was 0.005, is 0.001"),
        ({"loss": {"ce": 0.2}}, "loss.ce"),
        ({"run": {"seed": 1}}, "run.seed was 0, is 1"),
        ({"run": {"sequences_per_step": 4}}, "run.sequences_per_step"),
        ({"run": {"cache_gib": 0.5}}, "run.cache_gib"),
        ({"data": {"max_length": 200}}, "data.max_length"),
    ],
)
def test_another_recipe_is_refused(make: Make, sections: dict[str, Any], words: str) -> None:
    make(run={"steps": 4}).run()
    state = {p: p.read_bytes() for p in (make().out / "state").iterdir()}
    with pytest.raises(ConfigError, match=f"another recipe.*{words}"):
        make(**sections).run()
    assert {p: p.read_bytes() for p in (make().out / "state").iterdir()} == state


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: (state / "model.safetensors").write_bytes(b"x" * 100),
        lambda state: (state / "optimiser.safetensors").unlink(),
        lambda state: (state / "counters.json").write_text("{"),
        lambda state: (state / "counters.json").write_text("[]"),
        lambda state: (state / "counters.json").write_text("{}"),
        lambda state: (state / "counters.json").write_text('{"recipe": 3, "step": 1}'),
        lambda state: (state / "counters.json").write_text('{"recipe": {}, "what": 1}'),
        lambda state: [p.unlink() for p in state.iterdir()],
    ],
)
def test_a_damaged_state_is_named(make: Make, damage: Callable[[Path], Any]) -> None:
    make(run={"steps": 4}).run()
    damage(make().out / "state")
    with pytest.raises(CheckpointError, match=r"Cannot resume from .*state"):
        make().run()


def test_a_torn_log_is_no_obstacle(make: Make) -> None:
    make(run={"steps": 10}).run()
    path = make().out / "train_log.jsonl"
    with path.open("a") as file:
        file.write('{"kind": "train", "ste')
    make(run={"steps": 15}).run()
    assert [r["step"] for r in log(make()) if r["kind"] == "train"] == [5, 10, 15]


def test_more_answers_may_come_between_two_runs(tmp_path: Path, home: Path, target: Target) -> None:
    """The draft vocabulary stays that of the first run, and so do the head's rows."""
    mine = tmp_path / "home"
    shutil.copytree(home, mine)
    recipe = tiny_recipe(mine, tmp_path / "out", run={"steps": 6}, drafter={"draft_vocab_size": 60})
    first = Trainer(recipe, target=target)
    first.run()
    rows = [json.loads(line) for line in (mine / "answers.jsonl").read_text().splitlines()]
    rare = [i for i in range(6, 160) if i not in first.drafter.d2t.tolist()][:30]
    more = [row | {"id": f"new-{n}", "response_ids": rare * 3} for n, row in enumerate(rows)]
    with (mine / "answers.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in more)
    second = Trainer(recipe, target=target)
    assert second.drafter.d2t.tolist() != first.drafter.d2t.tolist()
    second.resume()
    assert second.drafter.d2t.tolist() == first.drafter.d2t.tolist()
    assert torch.equal(second.drafter.shared.head, target.head_weight[first.drafter.d2t])
    assert second.coverage < first.coverage


# --------------------------------------------------------------------------------- files and disks


def test_out_that_cannot_be_written(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        trainer = make(place)
        stop_at(trainer, 0, AssertionError("the work must not begin"))
        with pytest.raises(CheckpointError, match=r"cannot write .*file"):
            trainer.run()


def test_a_full_disk_keeps_the_older_state(
    make: Make, through: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make("again", run={"checkpoint_every_minutes": 1e-9})  # saves after every step
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "optimiser.safetensors" and first.counters.step == 9:
            real(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(CheckpointError, match=r"cannot write .*state.*No space left.*Free"):
            first.run()
    assert json.loads((first.out / "state" / "counters.json").read_text())["step"] == 8
    assert not [p for p in first.out.iterdir() if p.name.startswith(".")]
    second = make("again")
    second.run()
    assert_same_run(through, second, atol=1e-5)


def test_saving_and_measuring_leave_the_curve_alone(make: Make, through: Trainer) -> None:
    busy = make(run={"checkpoint_every_minutes": 1e-9, "eval_every_minutes": 1e-9})
    busy.held_out = busy.held_out[:4]
    busy.run()
    assert losses(busy) == losses(through)
    assert sum(row["kind"] == "held_out" for row in log(busy)) > 20
    assert busy.counters.anchors == through.counters.anchors


def test_the_drafter_is_kept_at_shares_of_the_budget(make: Make) -> None:
    trainer = make(run={"steps": 8, "keep_at": [0.25, 0.5]})
    trainer.run()
    steps = {}
    for name in ("drafter-25", "drafter-50", "drafter"):
        record = json.loads((trainer.out / name / "provenance.json").read_text())
        steps[name] = record["training"]["step"]
    assert steps == {"drafter-25": 2, "drafter-50": 4, "drafter": 8}
    assert (trainer.out / "drafter-25" / "model.safetensors").exists()


def test_provenance_beside_the_drafter(make: Make) -> None:
    trainer = make(run={"steps": 6}, drafter={"draft_vocab_size": 60})
    measured = trainer.run()
    record = json.loads((trainer.out / "drafter" / "provenance.json").read_text())
    assert record["command"] == "dspark train"
    assert list(record["inputs"].values())
    assert record["config"]["optim"]["lr"] == 5e-3
    training = record["training"]
    assert training["step"] == 6
    assert training["answers"] == len(trainer.train)
    assert training["response_tokens"] == sum(len(r.response_ids) for r in trainer.train)
    assert training["draft_vocabulary_coverage"] == round(trainer.coverage, 5)
    assert training["held_out"] == measured


def test_reports_every_log_line(home: Path, tmp_path: Path, target: Target) -> None:
    told: list[dict[str, Any]] = []
    trainer = Trainer(tiny_recipe(home, tmp_path / "out", run={"steps": 10}), told.append, target)
    trainer.run()
    assert told == list(read_jsonl(trainer.out / "train_log.jsonl"))
    assert [(r["kind"], r["step"], r["progress"]) for r in told] == [
        ("train", 5, 0.5),
        ("train", 10, 1.0),
        ("held_out", 10, 1.0),
    ]
    wanted = {"loss", "ce", "tv", "bce", "acceptance", "accepted_length", "anchors_per_s"}
    assert wanted < told[0].keys()
    assert len(told[0]["acceptance"]) == 4


def test_nothing_held_out(make: Make) -> None:
    trainer = make(run={"steps": 5}, data={"held_out_share": 0.0})
    assert trainer.run() == {}
    assert [row["kind"] for row in log(trainer)] == ["train"]
    assert (trainer.out / "drafter" / "model.safetensors").is_file()


def test_minutes_end_a_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps of an eighth of a second reach nine tenths of a second."""
    seconds = count(step=0.125)  # looked at before each step and behind it
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    trainer = make(run={"minutes": 0.9 / 60, "steps": None})
    trainer.run()
    assert (trainer.counters.step, trainer.counters.elapsed_s) == (8, 1.0)
    assert trainer.progress() == 1


def test_the_learning_rate_follows_the_progress(make: Make) -> None:
    trainer = make(run={"steps": 10}, optim={"final_lr_share": 0.0})
    rates = []
    real = trainer.step

    def step(visit: Any) -> None:
        real(visit)
        rates.append(trainer.optimisers[0].param_groups[0]["lr"])

    trainer.step = step  # type: ignore[method-assign]
    trainer.run()
    assert rates[0] == pytest.approx(5e-3)
    assert rates[5] == pytest.approx(2.5e-3)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 2e-4


def test_held_out_prompts_are_never_trained_on(make: Make) -> None:
    trainer = make()
    assert trainer.held_out
    assert not {r.id for r in trainer.train} & {r.id for r in trainer.held_out}
    keys = {r.key for r in trainer.held_out}
    trainer.run()
    assert not keys & trainer.cache._kept.keys()


def test_denormals_are_quiet_only_while_training(home: Path, tmp_path: Path) -> None:
    tiny = torch.tensor([1e-40])
    seen: list[bool] = []
    config = tiny_recipe(home, tmp_path, run={"steps": 5})
    run_training(config, lambda record: seen.append(bool(tiny * 1.0 > 0)))
    assert not any(seen)
    assert bool(tiny * 1.0 > 0)
    assert module.LOG == "train_log.jsonl"


def test_answers_in_several_files(home: Path, tmp_path: Path, target: Target) -> None:
    more = write_responses(
        tmp_path / "more.jsonl.gz", home / "target", count=3, seed=9, max_new_tokens=8
    )
    both = [str(home / "answers.jsonl"), str(more)]
    trainer = Trainer(
        tiny_recipe(home, tmp_path / "out", data={"responses": both}, run={"steps": 2}),
        target=target,
    )
    trainer.run()
    assert len(trainer.train) + len(trainer.held_out) > 96
    record = json.loads((trainer.out / "drafter" / "provenance.json").read_text())
    assert len(record["inputs"]) == 2
