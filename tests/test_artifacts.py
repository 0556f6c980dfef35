"""Writes are whole or absent, documents name their schema, JSON lines survive a kill."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark import artifacts
from dspark.artifacts import writing
from dspark.errors import CheckpointError, DataError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ------------------------------------------------------------------------------------- one file


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    artifacts.atomic_write_text(path, "one")
    artifacts.atomic_write_text(path, "zwei γ")
    assert path.read_text(encoding="utf-8") == "zwei γ"
    assert names(path.parent) == ["b.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "kept.json"
    artifacts.atomic_write_json(path, {"old": 1})
    monkeypatch.setattr(writing.os, step, full_disk)
    with pytest.raises(CheckpointError, match=r"No space left.*Free some disk space"):
        artifacts.atomic_write_json(path, {"new": 2}, error=CheckpointError)
    assert json.loads(path.read_text()) == {"old": 1}
    assert names(tmp_path) == ["kept.json"]


def test_unwritable_place_is_worded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/x.*found: Not a directory|exists"):
        artifacts.atomic_write_text(tmp_path / "file" / "x", "text")


def test_json_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    artifacts.atomic_write_json(path, {"a": [float("nan"), float("inf"), 1.5]})
    assert json.loads(path.read_text()) == {"a": [None, None, 1.5]}


# --------------------------------------------------------------------------------------- folders


def test_folder_is_swapped_in_whole(tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    for text in ("one", "two"):
        with artifacts.atomic_folder(path) as stage:
            (stage / "x").write_text(text)
            assert not path.exists() or (path / "x").read_text() != text
    assert (path / "x").read_text() == "two"
    assert names(tmp_path) == ["ckpt"]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # as safetensors says it
    ],
)
def test_failed_folder_keeps_the_old_one(tmp_path: Path, failure: Exception) -> None:
    path = tmp_path / "ckpt"
    with artifacts.atomic_folder(path) as stage:
        (stage / "x").write_text("old")

    def fill() -> None:
        with artifacts.atomic_folder(path) as stage:
            (stage / "x").write_text("half")
            raise failure

    with pytest.raises(CheckpointError, match="No space left on device"):
        fill()
    assert (path / "x").read_text() == "old"
    assert names(tmp_path) == ["ckpt"]


def test_other_errors_and_interrupts_pass_through(tmp_path: Path) -> None:
    for failure in (ConnectionError("gone"), KeyboardInterrupt(), ValueError("bug")):
        with pytest.raises(type(failure)), artifacts.atomic_folder(tmp_path / "x"):
            raise failure
    assert names(tmp_path) == []


def test_failed_swap_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ckpt"
    path.mkdir()
    (path / "x").write_text("old")
    rename, calls = os.rename, []

    def second_fails(source: Any, goal: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            full_disk()
        rename(source, goal)

    monkeypatch.setattr(writing.os, "rename", second_fails)
    with pytest.raises(CheckpointError), artifacts.atomic_folder(path) as stage:
        (stage / "x").write_text("new")
    assert (path / "x").read_text() == "old"
    assert names(tmp_path) == ["ckpt"]


def test_kill_between_the_renames_is_repaired(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    dead = int(done.stdout)
    old = tmp_path / f".ckpt.{dead}.0badcafe.old"
    old.mkdir()
    (old / "x").write_text("old")
    stale = tmp_path / f".ckpt.{dead}.0badcafe.tmp"
    stale.mkdir()
    os.utime(stale, (0, 0))
    live = tmp_path / f".ckpt.{os.getpid()}.0badcafe.tmp"
    live.mkdir()
    os.utime(live, (0, 0))
    artifacts.recover_folder(tmp_path / "ckpt")
    assert (tmp_path / "ckpt" / "x").read_text() == "old"
    assert names(tmp_path) == [live.name, "ckpt"]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(CheckpointError, match="is a file"), artifacts.atomic_folder(tmp_path / "x"):
        pass


# ------------------------------------------------------------------------------------- documents


def test_artifact_round_trip(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("abc")
    made = artifacts.provenance("dspark demo", {"seed": 3}, [tmp_path / "in.txt"])
    artifacts.write_artifact(tmp_path / "r.json", "dspark.demo/1", {"speedup": 2.0}, made)
    read = artifacts.read_artifact(tmp_path / "r.json", "dspark.demo/1")
    assert read["speedup"] == 2.0
    assert read["provenance"]["seeds"] == {"seed": 3}
    (digest,) = read["provenance"]["inputs"].values()
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert {"torch", "transformers", "python", "dspark"} <= read["provenance"]["versions"].keys()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"schema": "dspark.demo/2"}', r"not a dspark.demo/1 file \(found: dspark.demo/2\)"),
        ("{}", "found: no schema"),
        ("[1]", "found: no schema"),
        ('{"schema": "dspark.de', "damaged"),
    ],
)
def test_wrong_documents_are_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=match):
        artifacts.read_artifact(tmp_path / "r.json", "dspark.demo/1")


def test_missing_files_are_worded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        artifacts.read_artifact(tmp_path / "no.json", "dspark.demo/1")
    with pytest.raises(DataError, match="cannot read"):
        artifacts.provenance("x", inputs=[tmp_path / "no"])


@pytest.mark.parametrize(
    ("available", "device"), [(True, "NVIDIA H100 80GB HBM3"), (False, None), (None, None)]
)
def test_provenance_names_the_device(
    available: bool | None, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without importing torch (None): loading it to write a small file takes seconds."""
    if available is None:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    else:
        cuda = SimpleNamespace(is_available=lambda: available, get_device_name=lambda: device)
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert artifacts.provenance("dspark x")["device"] == device
    assert ("torch" in sys.modules) == (available is not None)


def test_provenance_names_no_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPARK_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    argv = ["/opt/x/bin/dspark", "--a=/secret/x.json", f"{tmp_path}/data/r.gz", "relative/y"]
    monkeypatch.setattr(sys, "argv", argv)
    found = artifacts.provenance("dspark x")["argv"]
    assert found == ["dspark", "--a=x.json", "data/r.gz", "relative/y"]
    monkeypatch.chdir("/")
    assert artifacts.provenance("x")["argv"][1] in ("--a=x.json", "--a=secret/x.json")


def test_files_in_a_list_lose_their_folders_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dspark", 'data.responses=["a.gz", "/secret/b.jsonl"]'])
    found = artifacts.provenance("dspark x")["argv"]
    assert found[1] == 'data.responses=["a.gz", "b.jsonl"]'


def test_folders_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "c"))
    assert artifacts.cache_dir() == tmp_path / "c"
    monkeypatch.delenv("DSPARK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert artifacts.cache_dir() == tmp_path / "dspark"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert artifacts.cache_dir() == Path.home() / ".cache" / "dspark"
    monkeypatch.delenv("DSPARK_DATA", raising=False)
    assert artifacts.data_dir() == Path("data")
    monkeypatch.setenv("DSPARK_DATA", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text("")
    assert artifacts.find_data("rows.jsonl") == tmp_path / "rows.jsonl"
    with pytest.raises(DataError, match="DSPARK_DATA"):
        artifacts.find_data("other.jsonl")


# ------------------------------------------------------------------------------------ JSON lines


@given(rows=st.integers(0, 4), cut=st.integers(0, 200))
def test_any_cut_loses_at_most_the_torn_row(
    tmp_path_factory: pytest.TempPathFactory, rows: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    written = [{"i": i, "text": "γ\n" * i} for i in range(rows)]
    artifacts.append_jsonl(path, written)
    content = path.read_bytes() if rows else b""
    kept = content[:cut]
    path.write_bytes(kept)
    whole = list(artifacts.read_jsonl(path))
    assert whole == written[: len(whole)]
    assert len(whole) >= kept.count(b"\n")
    artifacts.append_jsonl(path, [{"i": "new"}])
    assert list(artifacts.read_jsonl(path)) == [*whole, {"i": "new"}]


def test_torn_tail_longer_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 200_000)
    artifacts.append_jsonl(path, [{"c": 2}])
    assert list(artifacts.read_jsonl(path)) == [{"a": 1}, {"c": 2}]


def test_full_disk_cuts_back_to_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    artifacts.append_jsonl(path, [{"a": 1}])
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DataError, match="No space left"):
        artifacts.append_jsonl(path, [{"b": 2}, {"c": 3}])
    assert path.read_bytes() == b'{"a": 1}\n'


def test_damage_before_the_last_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        list(artifacts.read_jsonl(path))


def test_reads_gzip_and_words_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    content = gzip.compress(b'{"a": 1}\n' * 100)
    path.write_bytes(content)
    assert len(list(artifacts.read_jsonl(path))) == 100
    path.write_bytes(content[:-12])
    with pytest.raises(DataError, match="cannot read"):
        list(artifacts.read_jsonl(path))
    with pytest.raises(DataError, match="cannot read"):
        list(artifacts.read_jsonl(tmp_path / "no.jsonl"))


def test_a_tilde_that_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt may begin with one."""
    monkeypatch.setattr(sys, "argv", ["dspark", "--prompt", "~what is this?", "~/x"])
    found = artifacts.provenance("dspark x")["argv"]
    assert found[2] == "~what is this?"
    assert artifacts.expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


def test_names_with_signs_of_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "run [1] *"
    old = tmp_path / f".{path.name}.999999999.0badcafe.old"
    old.mkdir()
    (old / "x").write_text("old")
    artifacts.recover_folder(path)
    assert (path / "x").read_text() == "old"


# ---- before the work ------------------------------------------------------------------------


def test_check_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    artifacts.check_writable(tmp_path / "new.json")
    artifacts.check_writable(tmp_path / "file")
    artifacts.check_writable(tmp_path / "a" / "b" / "c.json")
    for wrong in (tmp_path, tmp_path / "file" / "x.json", tmp_path / "file" / "y" / "x.json"):
        with pytest.raises(DataError, match="cannot write"):
            artifacts.check_writable(wrong)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_check_writable_asks_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="may not be written to"):
        artifacts.check_writable(tmp_path / "x.json")
