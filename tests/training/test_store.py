"""`dspark store`'s work: resumable, sized beforehand, and training from it changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dspark.artifacts import read_jsonl
from dspark.data.store import StoredStates, origin_of
from dspark.errors import CheckpointError, ConfigError, DataError, IncompatibleDrafterError
from dspark.targets.target import Target, load_target
from dspark.training import store
from dspark.training.states import StateCache
from dspark.training.store import Plan, make_plan, write_store
from dspark.training.trainer import Trainer
from fakes import tiny_target_folder
from tiny import tiny_recipe

TAPS = (1, 3, 5)
SMALL = 2**18  # bytes of a shard: several of them


@pytest.fixture
def plan(home: Path, tmp_path: Path, target: Target) -> Plan:
    recipe = tiny_recipe(home, tmp_path / "out", drafter={"target_layer_ids": list(TAPS)})
    return make_plan(recipe, target, SMALL)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_states_are_those_of_the_cache(plan: Plan, target: Target, tmp_path: Path) -> None:
    out, told = tmp_path / "store", list[int]()
    size = write_store(plan, out, told.append)
    assert size == bytes_of(out)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, len(plan.responses))
    assert len(plan.shards) > 3
    assert [n for shard in plan.shards for n in shard] == list(range(len(plan.responses)))
    read = StoredStates(out, origin_of(target, TAPS))
    read.check(plan.responses)
    chosen = [*plan.responses[:3], *plan.responses[-3:]]
    fresh = StateCache(target, TAPS, 0).get(chosen)
    for mine, theirs in zip(read.get(chosen), fresh, strict=True):
        assert mine.first == theirs.first
        torch.testing.assert_close(mine.taps_TM, theirs.taps_TM, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.last_TD, theirs.last_TD, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.log_norm_T, theirs.log_norm_T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("taps", [list(TAPS), [2]])
def test_the_size_is_known_beforehand(
    home: Path, tmp_path: Path, target: Target, taps: list[int]
) -> None:
    recipe = tiny_recipe(home, tmp_path / "out", drafter={"target_layer_ids": taps})
    plan = make_plan(recipe, target, SMALL)
    assert plan.bytes == pytest.approx(write_store(plan, tmp_path / "store"), rel=0.02)
    for shard, numbers in enumerate(plan.shards):
        file = tmp_path / "store" / f"shard-{shard:05d}.safetensors"
        assert file.stat().st_size <= SMALL or len(numbers) == 1


def test_a_killed_run_goes_on_with_the_next_shard(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, through = tmp_path / "store", tmp_path / "through"
    write_store(plan, through)
    real, wrote = store.write_shard, list[int]()

    def dies(folder: Path, shard: int, *rest: Any) -> None:
        if shard == 2 and not wrote.count(2):
            wrote.append(2)
            raise KeyboardInterrupt
        wrote.append(shard)
        real(folder, shard, *rest)

    monkeypatch.setattr(store, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        write_store(plan, out)
    assert not (out / "store.json").exists()
    told: list[int] = []
    write_store(plan, out, told.append)
    assert wrote == [0, 1, 2, *range(2, len(plan.shards))]  # nothing was done twice
    assert told[0] == plan.shards[2].start
    for file in sorted(through.glob("*.safetensors")):
        assert (out / file.name).read_bytes() == file.read_bytes()
    wrote.clear()
    write_store(plan, out)
    assert not wrote


def test_a_folder_with_another_store(
    home: Path, plan: Plan, target: Target, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    write_store(plan, out)
    before = bytes_of(out)
    other = make_plan(tiny_recipe(home, out, drafter={"target_layer_ids": [2]}), target, SMALL)
    with pytest.raises(DataError, match=r"store of another recipe .*--out"):
        write_store(other, out)
    (out / "store.json").unlink()  # one that was not finished
    with pytest.raises(DataError, match="store of another recipe"):
        write_store(other, out)
    assert before > bytes_of(out) > 0.9 * before


def test_a_disk_that_is_too_small(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk(NamedTuple):
        free: int

    asked: list[Path] = []

    def usage(path: Path) -> Disk:
        asked.append(path)
        return Disk(int(plan.bytes * share))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    out = tmp_path / "far" / "away"
    share = 1.04
    with pytest.raises(DataError, match=r"too small .*\d MiB free, .*\d MiB needed"):
        write_store(plan, out)
    assert not (tmp_path / "far").exists()
    share = 1.06
    write_store(plan, out)
    assert set(asked) == {tmp_path}
    share = 0.0  # what is there needs no room
    write_store(plan, out)


def test_refusals_are_those_of_training(home: Path, tmp_path: Path, target: Target) -> None:
    with pytest.raises(IncompatibleDrafterError, match="taps a layer"):
        make_plan(tiny_recipe(home, tmp_path, drafter={"target_layer_ids": [9]}), target)
    with pytest.raises(ConfigError, match="Unknown drafter kind"):
        make_plan(tiny_recipe(home, tmp_path, drafter={"kind": "none"}), target)


def test_a_folder_that_cannot_be_written(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match="cannot write"):
        write_store(plan, tmp_path / "file" / "below")


# ------------------------------------------------------------------------------------- training


def log(trainer: Trainer) -> list[dict[str, Any]]:
    clock = {"minutes", "anchors_per_s"}
    rows = read_jsonl(trainer.out / "train_log.jsonl")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def test_training_from_it_changes_nothing(
    home: Path, tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sequence a step and a pass, so that states are computed in the same company."""
    run = {"steps": 12, "sequences_per_step": 1, "log_every": 1, "cache_gib": 1e-4}
    plain = Trainer(tiny_recipe(home, tmp_path / "plain", run=run), target=target)
    plain.held_out = plain.held_out[:4]
    recipe = tiny_recipe(home, tmp_path / "out", run=run)
    write_store(make_plan(recipe, target, SMALL), tmp_path / "store", pack_tokens=1)
    data = {"store": str(tmp_path / "store")}
    stored = Trainer(tiny_recipe(home, tmp_path / "stored", run=run, data=data), target=target)
    stored.held_out = stored.held_out[:4]
    monkeypatch.setattr(StateCache, "_compute", None)  # nothing is computed from here on
    stored.run()
    monkeypatch.undo()
    plain.run()
    for mine, theirs in zip(log(stored), log(plain), strict=True):
        for name, value in mine.items():
            assert value == pytest.approx(theirs[name], abs=1e-6), name
    for a, b in zip(stored.drafter.parameters(), plain.drafter.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    text = (stored.out / "drafter" / "provenance.json").read_text()
    assert str(tmp_path) not in text


def test_a_run_may_take_to_a_store(home: Path, tmp_path: Path, target: Target) -> None:
    first = tiny_recipe(home, tmp_path / "out", run={"steps": 2})
    Trainer(first, target=target).run()
    write_store(make_plan(first, target), tmp_path / "store")
    data = {"store": str(tmp_path / "store")}
    Trainer(tiny_recipe(home, tmp_path / "out", run={"steps": 4}, data=data), target=target).run()
    again = Trainer(tiny_recipe(home, tmp_path / "out", run={"steps": 5}), target=target)
    again.run()
    assert again.counters.step == 5


def test_a_store_that_does_not_fit_is_refused(home: Path, tmp_path: Path, target: Target) -> None:
    folder = tmp_path / "store"
    plan = make_plan(tiny_recipe(home, tmp_path / "out"), target)
    write_store(plan, folder)
    data = {"store": str(folder)}

    def start(target: Target = target, **sections: Any) -> None:
        sections["data"] = {**data, **sections.get("data", {})}
        Trainer(tiny_recipe(home, tmp_path / "out", **sections), target=target)

    start()
    with pytest.raises(IncompatibleDrafterError, match="target layer ids"):
        start(drafter={"target_layer_ids": [2]})
    with pytest.raises(IncompatibleDrafterError, match=r"dtype .*float32.*bfloat16"):
        start(load_target(home / "target", "bfloat16"), run={"dtype": "bfloat16"})
    other = load_target(tiny_target_folder(tmp_path / "other", seed=5), "float32")
    with pytest.raises(IncompatibleDrafterError, match="another target: weights"):
        start(other)
    with pytest.raises(DataError, match="with other tokens"):
        start(data={"max_length": max(map(len, plan.responses)) - 1})
