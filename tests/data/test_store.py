"""States on disk: what was written is what is read, and nothing else is taken for it."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark.data import store
from dspark.data.responses import Response
from dspark.data.states import SequenceStates
from dspark.data.store import Entry, StoredStates, StoreOrigin, hash_ids, write_index, write_shard
from dspark.errors import DataError, IncompatibleDrafterError

ORIGIN = StoreOrigin("some-model", 6, "bfloat16", (1, 3), "ab" * 32)
LENGTHS = [(3, 4), (2, 9), (5, 2), (4, 4), (1, 7)]
SHARDS = [range(0, 2), range(2, 5)]


def answers() -> list[Response]:
    made = []
    for number, (prompt, answer) in enumerate(LENGTHS):
        ids = np.arange(prompt + answer, dtype=np.int32) + 10 * number
        made.append(Response(f"p{number}", "math", ids[:prompt], ids[prompt:], 1.0, True))
    return made


def states(origin: StoreOrigin = ORIGIN) -> list[SequenceStates]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for prompt, answer in LENGTHS:
        width = 6 * max(len(origin.target_layer_ids), 1)
        taps = torch.randn(prompt + answer, width, generator=generator).bfloat16()
        last = torch.randn(answer, 6, generator=generator).bfloat16()
        norm = torch.randn(answer, generator=generator)
        answered = last if origin.target_layer_ids else taps[prompt:]
        made.append(SequenceStates(taps, answered, norm, prompt))
    return made


def written(folder: Path, origin: StoreOrigin = ORIGIN) -> Path:
    entries = []
    for shard, numbers in enumerate(SHARDS):
        write_shard(folder, shard, numbers.start, [states(origin)[n] for n in numbers], "plan")
        for r in (answers()[n] for n in numbers):
            entries.append(Entry(r.key, shard, len(r), len(r.prompt_ids), hash_ids(r)))
    write_index(folder, "plan", origin, entries, {"command": "a test"})
    return folder


@pytest.mark.parametrize("origin", [ORIGIN, replace(ORIGIN, target_layer_ids=())], ids=str)
def test_round_trip(tmp_path: Path, origin: StoreOrigin) -> None:
    read = StoredStates(written(tmp_path, origin), origin)
    read.check(answers())
    order = [3, 0, 4, 0]
    for number, found in zip(order, read.get([answers()[n] for n in order]), strict=True):
        wanted = states(origin)[number]
        assert found.first == wanted.first
        for name in ("taps_TM", "last_TD", "log_norm_T"):
            mine, theirs = getattr(found, name), getattr(wanted, name)
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs), name
        assert found.nbytes >= wanted.nbytes


def test_last_states_are_not_written_twice_without_taps(tmp_path: Path) -> None:
    written(tmp_path / "taps")
    written(tmp_path / "none", replace(ORIGIN, target_layer_ids=()))
    sizes = [store.shard_path(tmp_path / name, 0).stat().st_size for name in ("taps", "none")]
    rows, answer = sum(p + a for p, a in LENGTHS[:2]), sum(a for _, a in LENGTHS[:2])
    header = 1200
    assert 2 * 6 * 2 * rows + 2 * 6 * answer + 4 * answer <= sizes[0] < header + 700 + 4 * answer
    assert 2 * 6 * rows + 4 * answer <= sizes[1] < header


def test_shards_are_mapped_and_not_copied(tmp_path: Path) -> None:
    """Sequences of a shard are views of one mapping, and reading again makes no other."""
    read = StoredStates(written(tmp_path), ORIGIN)
    a, b, again = read.get([answers()[2], answers()[4], answers()[2]])
    places = [x.data_ptr() for s in (a, b) for x in (s.taps_TM, s.last_TD, s.log_norm_T)]
    assert max(places) - min(places) < store.shard_path(tmp_path, 1).stat().st_size
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(store.shard_path(tmp_path, 1)) in maps.read_text()
    assert again.taps_TM.data_ptr() == a.taps_TM.data_ptr()
    assert list(read._shards) == [1]  # the other shard was not touched


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "cd" * 32}, r"another target: weights .*store abab.*some-model.*run cdcd"),
        ({"target_layer_ids": (1, 4)}, r"target layer ids .*\[1, 3\].*\[1, 4\]"),
        ({"target_layer_ids": ()}, r"target layer ids .*\[1, 3\].*run \[\]"),
        ({"dtype": "float32"}, r"dtype .*bfloat16.*float32.*or set run\.dtype"),
        ({"hidden_size": 8}, r"hidden size .*store 6.*run 8"),
    ],
)
def test_states_of_another_target_are_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(IncompatibleDrafterError, match=words):
        StoredStates(written(tmp_path), replace(ORIGIN, **change))


def test_a_target_may_have_moved(tmp_path: Path) -> None:
    StoredStates(written(tmp_path), replace(ORIGIN, target="another-name"))


def test_sequences_it_does_not_have(tmp_path: Path) -> None:
    read = StoredStates(written(tmp_path), ORIGIN)
    other = replace(answers()[1], id="p9")
    with pytest.raises(DataError, match=r"lacks a sequence .*p9#0, not among its 5.*dspark store"):
        read.check([answers()[0], other])
    changed = replace(answers()[1], response_ids=answers()[1].response_ids + 1)
    words = rf"p1#0 with other tokens .*{hash_ids(answers()[1])}.*{hash_ids(changed)}"
    with pytest.raises(DataError, match=words):
        read.check([changed])


def test_the_hash_tells_where_the_answer_begins() -> None:
    whole = np.arange(8, dtype=np.int32)
    a, b = (Response("p", "", whole[:n], whole[n:], 1.0, True) for n in (3, 4))
    assert hash_ids(a) != hash_ids(b)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no finished store .*finish it, with `dspark store`"):
        StoredStates(tmp_path, ORIGIN)
    write_shard(tmp_path, 0, 0, states()[:2], "plan")  # a run that has not come to its end
    with pytest.raises(DataError, match="no finished store"):
        StoredStates(tmp_path, ORIGIN)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-20],
        lambda text: text.replace("dspark.store/1", "dspark.store/2"),
        lambda text: text.replace('"sequences"', '"sequence"'),
        lambda text: text.replace('"shard"', '"shards"'),
        lambda text: text.replace('"dtype"', '"type"'),
    ],
)
def test_a_damaged_index(tmp_path: Path, spoil: Any) -> None:
    path = written(tmp_path) / "store.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match=r"store\.json"):
        StoredStates(tmp_path, ORIGIN)


@pytest.mark.parametrize("damage", ["missing", "half", "other"])
def test_a_damaged_shard(tmp_path: Path, damage: str) -> None:
    path = store.shard_path(written(tmp_path), 1)
    if damage == "half":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "other":
        write_shard(tmp_path, 1, 70, states()[:1], "plan")
    else:
        path.unlink()
    read = StoredStates(tmp_path, ORIGIN)
    assert len(read.get([answers()[0]])) == 1
    with pytest.raises(DataError, match=r"shard-00001.*damaged or missing.*dspark store"):
        read.get([answers()[2]])


def test_a_full_disk_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write .*No space left.*Free some disk"):
        write_shard(tmp_path, 0, 0, states(), "plan")
    assert not list(tmp_path.iterdir())


def test_what_the_index_holds(tmp_path: Path) -> None:
    content = json.loads((written(tmp_path) / "store.json").read_text())
    assert content["schema"] == "dspark.store/1"
    assert content["provenance"] == {"command": "a test"}
    assert content["sequences"][3] == {
        "key": "p3#0",
        "shard": 1,
        "tokens": 8,
        "first": 4,
        "ids": hash_ids(answers()[3]),
    }
    assert store.index_plan(tmp_path) == store.shard_plan(tmp_path, 1) == "plan"
    assert store.shard_plan(tmp_path, 2) is None
    assert store.index_plan(tmp_path / "nowhere") is None
