"""Cost and calibration that the policy `auto` finds, measures, keeps, or does without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dspark.core import SamplingParams
from dspark.drafters.checkpoint import load_drafter, save_drafter
from dspark.drafters.drafter import Drafter
from dspark.engine import tables
from dspark.engine.engine import Engine
from dspark.engine.measuring import measure_quickly, quick_sizes
from dspark.engine.policies import PolicyTables
from dspark.engine.runner import Runner
from dspark.engine.scheduler import Adaptive
from dspark.errors import ConfigError, EngineError, IncompatibleDrafterError
from dspark.tables.calibration import FILE, CalibrationEntry, CalibrationTable
from dspark.tables.cost import CostTable
from dspark.targets.target import Target
from made_up import KEY
from scripted import random_drafter

K = 5


@pytest.fixture
def folder(target: Target, tmp_path: Path) -> Path:
    return save_drafter(random_drafter(target, K), tmp_path / "drafter")


pytestmark = pytest.mark.usefixtures("tmp_cache")


def loaded(folder: Path, target: Target) -> Drafter:
    return load_drafter(folder, target)


def known(engine: Engine) -> PolicyTables:
    assert isinstance(engine.policy, Adaptive)
    return engine.policy.tables


def file_of(target: Target, drafter: Drafter) -> Path:
    return tables.default_path(tables.cost_key(target, drafter))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "measure_quickly", None)


def test_one_user_costs_few_forwards(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"forward": 0, "draft": 0}
    for name in counts:
        owner: Any = type(target) if name == "forward" else Runner
        plain = getattr(owner, name)

        def counted(*args: Any, name: str = name, plain: Any = plain, **more: Any) -> Any:
            counts[name] += 1
            return plain(*args, **more)

        monkeypatch.setattr(owner, name, counted)
    engine = Engine(target, random_drafter(target, K), slots=1, max_len=64)
    assert counts["forward"] <= 16
    assert counts["draft"] <= 6
    cost = known(engine).cost
    assert [rows for rows, _ in cost.verify] == [1, 4, 1 + K]
    assert (cost.block, [slots for slots, _ in cost.short]) == (K, [1])


def test_more_users_are_measured_as_far_as_there_are_slots(target: Target) -> None:
    assert quick_sizes(1) == [1]
    assert quick_sizes(8) == [1, 2, 4, 8]
    assert quick_sizes(64) == [1, 2, 4, 16, 64]
    drafter = random_drafter(target, K)
    cost = known(Engine(target, drafter, slots=3, max_len=64)).cost
    assert [n for n, _ in cost.of_requests] == [1, 2, 3]
    assert [n for n, _ in cost.draft] == [1, 2, 3]
    assert {rows for rows, _ in cost.of_requests[-1][1]} == {3, 9, 3 * (1 + K)}


def test_a_table_of_shorter_texts_is_made_again(target: Target, folder: Path) -> None:
    """Attention to short texts takes too little time, so it promises too much of long drafts."""
    drafter = loaded(folder, target)
    short = known(Engine(target, drafter, slots=1, max_len=20)).cost
    again = known(Engine(target, loaded(folder, target), slots=1, max_len=64)).cost
    assert (short.context, again.context) == (20 - K - 1, 64 - K - 1)
    assert known(Engine(target, loaded(folder, target), slots=1, max_len=20)).cost == again


def test_where_time_is_short_fewer_users_are_measured(target: Target) -> None:
    runner = Runner(target, random_drafter(target, K), 8, 64, K)
    found = measure_quickly(runner, KEY, users=8, max_len=64, seconds=0.0)
    assert found is not None
    assert [n for n, _ in found.of_requests] == [1]


def test_a_drafter_of_a_single_slot(target: Target) -> None:
    cost = known(Engine(target, random_drafter(target, 1), slots=1, max_len=64)).cost
    assert ([rows for rows, _ in cost.verify], cost.short) == ([1, 2], ())


def test_measured_once_and_kept(
    target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = known(Engine(target, loaded(folder, target), slots=1, max_len=64))
    drafter = loaded(folder, target)
    assert CostTable.load(file_of(target, drafter)) == first.cost
    assert first.cost.key.drafter == drafter.sha256 != ""
    forbid(monkeypatch)
    assert known(Engine(target, drafter, slots=1, max_len=64)) == first


def test_a_table_without_enough_users_is_added_to(target: Target, folder: Path) -> None:
    one = known(Engine(target, loaded(folder, target), slots=1, max_len=64)).cost
    drafter = loaded(folder, target)
    more = known(Engine(target, drafter, slots=4, max_len=64)).cost
    assert dict(more.of_requests)[1] == dict(one.of_requests)[1]
    assert [n for n, _ in more.of_requests] == [1, 2, 4]
    assert CostTable.load(file_of(target, drafter)) == more


def test_a_drafter_made_in_memory_leaves_no_file(
    target: Target, tmp_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = random_drafter(target, K)
    first = known(Engine(target, drafter, slots=1, max_len=64))
    assert not list(tmp_cache.glob("cost/*"))
    forbid(monkeypatch)
    assert known(Engine(target, drafter, slots=1, max_len=64)) == first


def broken(path: Path) -> None:
    path.write_text("{")


def foreign(path: Path) -> None:
    content = json.loads(path.read_text())
    del content["key"]["kernels"]  # as tables of before are
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("spoil", [broken, foreign])
def test_a_table_that_cannot_be_used_is_measured_anew(
    target: Target, folder: Path, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Engine(target, loaded(folder, target), slots=1, max_len=64)
    drafter = loaded(folder, target)
    path = file_of(target, drafter)
    spoil(path)
    known(Engine(target, drafter, slots=1, max_len=64))
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    assert CostTable.load(path, tables.cost_key(target, drafter)).verify
    if spoil is foreign:
        foreign(path)
        with pytest.raises(IncompatibleDrafterError, match="another set of kernels"):
            Engine(target, loaded(folder, target), "causal", slots=1, max_len=64)


def test_a_cache_folder_that_cannot_be_written(
    target: Target,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "file"))
    drafter = loaded(folder, target)
    first = known(Engine(target, drafter, slots=1, max_len=64))
    assert len(caplog.records) == 1
    assert "cannot write" in caplog.text
    forbid(monkeypatch)
    assert known(Engine(target, drafter, slots=1, max_len=64)) == first


def test_calibration_comes_with_the_drafter(
    target: Target, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sha256 = loaded(folder, target).sha256
    entry = CalibrationEntry(0.0, 1.0, 0, (1.0,) * K, (0.5,) * K)
    table = CalibrationTable(sha256, "dspark", K, "t", (entry,))
    table.save(folder / FILE)
    assert known(Engine(target, loaded(folder, target), slots=1, max_len=64)).calibration == table
    CalibrationTable("00", "dspark", K, "t", (entry,)).save(folder / FILE)
    found = known(Engine(target, loaded(folder, target), slots=1, max_len=64))
    assert found.calibration is None
    assert "made for another drafter" in caplog.text
    with pytest.raises(IncompatibleDrafterError, match="made for another drafter"):
        Engine(target, loaded(folder, target), "causal", slots=1, max_len=64)


def test_causal_takes_what_auto_measured(target: Target, folder: Path) -> None:
    drafter = loaded(folder, target)
    with pytest.raises(ConfigError, match=r"what a round costs.*dspark profile"):
        Engine(target, drafter, "causal", slots=1, max_len=64)
    cost = known(Engine(target, drafter, slots=1, max_len=64)).cost
    policy: Any = Engine(target, drafter, "causal", slots=1, max_len=64).policy
    assert policy.tables.cost == cost


def test_no_room_for_a_block_is_plain_decoding(target: Target) -> None:
    assert Engine(target, random_drafter(target, K), slots=1, max_len=K + 1).policy.name == "off"
    assert Engine(target).policy.name == "off"


@pytest.mark.parametrize("slots", [1, 3])
def test_measuring_leaves_no_trace_in_texts(target: Target, slots: int) -> None:
    prompts, params = [[5, 6, 7], [8, 9], [10]], SamplingParams(max_new_tokens=40)
    engine = Engine(target, random_drafter(target, K), slots=slots, max_len=64)
    plain = Engine(target, slots=slots, max_len=64).generate(prompts, params)
    found = engine.generate(prompts, params)
    assert [r.output_ids for r in found] == [r.output_ids for r in plain]


def test_models_that_cannot_be_measured_decode_plainly(
    target: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any, **more: Any) -> Any:
        raise EngineError("no finite numbers")

    monkeypatch.setattr(tables, "measure_quickly", fails)
    engine = Engine(target, random_drafter(target, K), slots=1, max_len=64)
    assert engine.policy.name == "off"
    assert "no finite numbers" in caplog.text


def test_calibration_of_the_other_rule_stands_in_and_is_named(
    folder: Path, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    drafter = loaded(folder, target)
    scales, mean = (1.0,) * K, (0.5, 0.4, 0.3, 0.2, 0.1)
    of_token = CalibrationEntry(1.0, 1.0, 0, scales, mean, verification="token")
    table = CalibrationTable(drafter.sha256, "dspark", K, "t", (of_token,))
    table.save(folder / FILE)
    caplog.set_level("INFO", "dspark.engine")
    for rule, said in (("token", 0), ("block", 1)):
        caplog.clear()
        engine = Engine(target, drafter, slots=1, max_len=64, verification=rule)
        calibration = known(engine).calibration
        assert calibration is not None
        assert calibration.entries == (of_token,)
        assert sum("stands in for block" in line for line in caplog.messages) == said

    of_block = CalibrationEntry(1.0, 1.0, 0, scales, tuple(a + 0.05 for a in mean))
    table.with_entry(of_block).save(folder / FILE)
    for rule, entry in (("token", of_token), ("block", of_block)):
        engine = Engine(target, drafter, slots=1, max_len=64, verification=rule)
        calibration = known(engine).calibration
        assert calibration is not None
        assert calibration.entries == (entry,)
