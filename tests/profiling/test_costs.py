"""Measuring a round's cost: what is run, and what the table says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dspark import native
from dspark.core import Role, SamplingParams
from dspark.engine.engine import Engine
from dspark.engine.policies import PolicyTables
from dspark.engine.runner import Runner
from dspark.engine.tables import cost_key, default_path, kernel_level
from dspark.errors import ConfigError
from dspark.profiling import costs
from dspark.tables.cost import CostKey
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder
from scripted import answer, random_drafter

KEY = CostKey("m", 1, "t", "float32", "d")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(tiny_target_folder(tmp_path_factory.mktemp("target")), "float32")


def test_sizes_cover_one_user_densely_and_many_coarsely() -> None:
    assert dict(costs.sizes(1, 3)) == {1: range(4)}
    assert dict(costs.sizes(6, 4)) == {1: range(5), 2: range(5), 4: [0, 1, 2, 4], 6: [0, 1, 2, 4]}


def test_short_blocks_stay_below_the_whole_one() -> None:
    assert [costs.short_blocks(size) for size in (1, 2, 3, 7)] == [(), (1,), (1, 2), (1, 2, 4)]


def test_every_size_is_run_and_kept(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, undrafted = [], []
    plain = Runner.verify

    def verify(self: Runner, layout: Any, drafts: Any) -> Any:
        decoding = layout.of(Role.PLAIN, Role.DRAFTED)
        if decoding:
            assert {span.start for span in decoding} == {20}
            seen.append(layout.rows)
            if drafts is None:
                undrafted.append(tuple(span.verified for span in decoding))
        return plain(self, layout, drafts)

    drafted = set()
    plain_draft = Runner.draft

    def draft(self: Runner, batch: Any, slots: int) -> Any:
        found = plain_draft(self, batch, slots)
        if found is not None:
            drafted.add((len(batch.decode), found.draft_ids_RK.shape[1]))
        return found

    monkeypatch.setattr(Runner, "verify", verify)
    monkeypatch.setattr(Runner, "draft", draft)
    told: list[int] = []
    table = costs.measure(
        target,
        random_drafter(target, 3),
        KEY,
        users=4,
        context=20,
        repeats=2,
        on_repeat=lambda done, all_: told.append(done),
    )
    expected = {1, 2, 3, 4, 6, 8, 12, 16}  # of each request 1 to 4 rows
    assert [(n, [size for size, _ in points]) for n, points in table.of_requests] == [
        (1, [1, 2, 3, 4]),
        (2, [2, 4, 6, 8]),
        (4, [4, 8, 12, 16]),
    ]
    assert {size for size, _ in table.verify} == expected == set(seen)
    assert [size for size, _ in table.draft] == [1, 2, 4]
    assert (table.block, [slots for slots, _ in table.short]) == (3, [1, 2])
    assert all([size for size, _ in points] == [1, 2, 4] for _, points in table.short)
    assert drafted == {(requests, slots) for requests in (1, 2, 4) for slots in (1, 2, 3)}
    assert set(undrafted) == {(0,), (0, 0), (0, 0, 0, 0)}  # steps that draft nothing, as they are
    assert told == [0, 1, 2]
    assert (table.key, table.context) == (KEY, 20)


def test_a_budget_leaves_users_out_before_it_is_overdrawn(target: Target) -> None:
    """One size is measured whatever it takes; a thorough run takes them all."""
    sizes = {}
    for seconds in (0.0, None):
        table = costs.measure(
            target, random_drafter(target, 3), KEY, users=4, context=8, repeats=1, seconds=seconds
        )
        sizes[seconds] = [requests for requests, _ in table.of_requests]
    assert sizes == {0.0: [1], None: [1, 2, 4]}


def test_the_table_drives_an_engine(target: Target) -> None:
    """And the text stays the target's."""
    drafter = random_drafter(target, 3)
    table = costs.measure(target, drafter, KEY, users=2, context=8, repeats=1)
    prompts, params = [[5, 6, 7], [8, 9]], SamplingParams(max_new_tokens=12)
    plain = answer(target, None, prompts, params)
    for policy in ("auto", "causal", "pipelined"):
        engine = Engine(target, drafter, policy, slots=2, tables=PolicyTables(table))
        assert [r.output_ids for r in engine.generate(prompts, params)] == plain


def test_a_context_that_does_not_fit(target: Target) -> None:
    with pytest.raises(ConfigError, match="too long for the target"):
        costs.measure(target, random_drafter(target, 3), KEY, users=1, context=10**6, repeats=1)


def test_a_table_has_its_place_by_what_it_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path))
    drafter = random_drafter(target, 3)
    drafter.sha256 = "ab" * 32
    key = cost_key(target, drafter)
    assert (key.dtype, key.target) == ("float32", Path(target.name).name)
    assert key.kernels == kernel_level(target.device) in native.usable()
    assert kernel_level(torch.device("cuda")) == "cuda"
    places = {default_path(k) for k in (key, KEY)}
    assert len(places) == 2
    assert all(tmp_path in place.parents for place in places)
