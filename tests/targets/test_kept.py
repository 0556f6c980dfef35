"""Kept targets: the same as a fresh load bit for bit, and never anything but the folder's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark import native
from dspark.artifacts import cache_dir
from dspark.core import SamplingParams
from dspark.engine.engine import Engine
from dspark.errors import CheckpointError, ConfigError
from dspark.native import build
from dspark.targets import kept, kept_file, kept_target
from dspark.targets.light_tokenizer import LightTokenizer
from dspark.targets.target import LeanTarget, Target, load_target
from fakes import tiny_target_folder

OURS = native.kernels() is not None
LAYERS = {"llama": 2, "qwen3": 2, "gemma3": 6}  # layers; Gemma's sixth is another
TEXTS = [list(range(3, 40)), [5], [9, 8, 7, 6, 5, 4, 3]]


@pytest.fixture(autouse=True)
def _keeps(tmp_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.LIMIT, "1")
    monkeypatch.setattr(kept, "FREE_BYTES", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_target_folder(tmp_path / "target", layers=3)


def files(ending: str = kept.ENDING) -> list[Path]:
    return sorted(kept.folder().glob(f"*{ending}"))


def is_kept(target: Target) -> bool:
    return isinstance(target.tokenizer, LightTokenizer)


@torch.no_grad()
def numbers(target: Target) -> list[torch.Tensor]:
    taps = list(range(target.spec.num_layers))
    last, tapped = target.states(TEXTS, taps)
    assert tapped is not None
    ids = torch.tensor(TEXTS[0])
    return [last, tapped, target.logits(last), target.embed(ids), target.head_weight]


def answers(target: Target) -> list[list[int]]:
    engine = Engine(target, None, slots=2, max_len=80)
    prompts = [target.encode("Why is the sky blue?"), target.encode("abc", raw=True)]
    greedy = engine.generate(prompts, SamplingParams(max_new_tokens=20))
    drawn = engine.generate(prompts, SamplingParams(temperature=1.0, seed=3, max_new_tokens=20))
    return [request.output_ids for request in (*greedy, *drawn)]


def same(one: Target, other: Target) -> None:
    assert all(map(torch.equal, numbers(one), numbers(other)))
    assert answers(one) == answers(other)
    assert (one.spec, one.stop_ids, one.rope_theta) == (
        other.spec,
        other.stop_ids,
        other.rope_theta,
    )
    assert one.precision == other.precision


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(
    ("dtype", "tie"), [("float32", True), ("bfloat16", False), ("float16", True)]
)
def test_a_kept_target_is_the_fresh_one(tmp_path: Path, family: str, tie: bool, dtype: str) -> None:
    folder = tiny_target_folder(tmp_path / "target", family, tie=tie, layers=LAYERS[family])
    fresh, second = load_target(folder, dtype), load_target(folder, dtype)
    assert not is_kept(fresh)
    assert is_kept(second)
    same(fresh, second)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_our_kernels(folder: Path, dtype: str) -> None:
    before = native.current()
    try:
        native.use(native.TORCH)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DSPARK_KERNELS", native.TORCH)
            fresh, second = load_target(folder, dtype), load_target(folder, dtype)
            assert is_kept(second)
            same(fresh, second)
    finally:
        native.use(before)


@pytest.mark.skipif(not OURS, reason="needs the compiled kernels")
def test_types_and_weights_are_kept_apart(folder: Path) -> None:
    ways = [("float32", "same"), ("bfloat16", "same"), ("bfloat16", "int8"), ("float32", "int8")]
    fresh = [load_target(folder, dtype, weights=weights) for dtype, weights in ways]
    assert len(files()) == len(ways)
    for target, (dtype, weights) in zip(fresh, ways, strict=True):
        second = load_target(folder, dtype, weights=weights)
        assert is_kept(second)
        same(target, second)
        assert isinstance(second, LeanTarget)
        assert isinstance(target, LeanTarget)
        assert second.weight_bytes == target.weight_bytes


def test_transformers_is_not_imported(folder: Path) -> None:
    load_target(folder, "float32")
    if (library := build.library()) is not None:  # not compiled once more
        (cache_dir() / "native").symlink_to(Path(library._name).absolute().parent)
    code = (
        "import sys, dspark; t = dspark.load_target(sys.argv[1], 'float32'); t.encode('Hello');"
        "print([m for m in ('transformers', 'torch._dynamo', 'torch.distributed.tensor') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def edit(folder: Path) -> None:
    """Other weights of the same size in place, with the times of before."""
    path = folder / "model.safetensors"
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[-64:] = bytes(64)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_folder_edited_in_place_is_loaded_anew(folder: Path) -> None:
    before = [number.clone() for number in numbers(load_target(folder, "float32"))]
    edit(folder)
    after = load_target(folder, "float32")
    assert not is_kept(after)
    assert not all(map(torch.equal, before, numbers(after)))
    again = load_target(folder, "float32")
    assert is_kept(again)
    same(after, again)
    assert len(files()) == 1  # nobody has the old content any more


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_other_files_of_the_folder_count_too(folder: Path, name: str) -> None:
    load_target(folder, "float32")
    path = folder / name
    path.write_text(path.read_text() + "\n" if path.exists() else "{{ messages[0].content }}")
    assert not is_kept(load_target(folder, "float32"))


def test_a_touched_folder_is_the_same(folder: Path) -> None:
    load_target(folder, "float32")
    os.utime(folder / "model.safetensors")
    assert is_kept(load_target(folder, "float32"))


def test_a_link_to_the_folder_is_the_folder(folder: Path, tmp_path: Path) -> None:
    fresh = load_target(folder, "float32")
    link = tmp_path / "a link \u00e9"
    link.symlink_to(folder)
    second = load_target(link, "float32")
    assert is_kept(second)
    assert second.name == str(link)
    same(fresh, second)


def broken(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:middle],
            "empty": b"",
            "longer": content + b"\0",
            "zeros": content[:middle] + bytes(len(content) - middle),
            "noise": os.urandom(len(content)),
            "header": content[:100] + b"?" + content[101:],
        }[how]
    )


@pytest.mark.parametrize("how", ["cut", "empty", "longer", "zeros", "noise", "header"])
def test_a_damaged_file_is_made_anew(folder: Path, how: str) -> None:
    fresh = load_target(folder, "float32")
    broken(files()[0], how)
    second = load_target(folder, "float32")
    assert not is_kept(second)
    same(fresh, second)
    assert is_kept(load_target(folder, "float32"))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema": "dspark.kept_place/1"}', "\0"])
def test_a_damaged_note_of_the_place_is_made_anew(folder: Path, text: str) -> None:
    load_target(folder, "float32")
    (note,) = files(".json")
    note.write_text(text)
    assert not is_kept(load_target(folder, "float32"))
    assert is_kept(load_target(folder, "float32"))


def test_a_cache_that_is_deleted_while_a_target_is_used(folder: Path) -> None:
    fresh, used = load_target(folder, "float32"), load_target(folder, "float32")
    shutil.rmtree(kept.folder().parent)
    same(fresh, used)
    assert not is_kept(load_target(folder, "float32"))
    assert is_kept(load_target(folder, "float32"))


def test_a_kept_target_changed_in_memory_is_not_changed_on_disk(folder: Path) -> None:
    fresh, used = load_target(folder, "float32"), load_target(folder, "float32")
    used.embedding_weight.zero_()
    same(fresh, load_target(folder, "float32"))


def test_two_first_loads_at_once(folder: Path) -> None:
    stamps, fresh = kept.stamp(folder), load_target(folder, "float32")
    assert isinstance(fresh, LeanTarget)
    shutil.rmtree(kept.folder())
    writing = lambda: kept_target.keep(fresh, folder, stamps)  # noqa: E731
    with ThreadPoolExecutor(4) as at_once:
        for job in [at_once.submit(writing) for _ in range(12)]:
            job.result()
    second = load_target(folder, "float32")
    assert is_kept(second)
    same(fresh, second)
    assert not list(kept.folder().glob(".*"))


def refuse(*args: Any, **options: Any) -> None:
    raise CheckpointError("cannot write it", found="No space left on device")


@pytest.mark.parametrize("where", ["file", "folder", "link"])
def test_a_cache_that_cannot_be_written(
    folder: Path, tmp_cache: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    tmp_cache.mkdir(parents=True, exist_ok=True)
    if where == "file":  # a file where the folder should be; root may write to any folder
        kept.folder().write_text("")
    elif where == "link":
        kept.folder().symlink_to(tmp_cache / "nowhere" / "at all")
    else:
        monkeypatch.setattr(kept_file, "write", refuse)
    first, second = load_target(folder, "float32"), load_target(folder, "float32")
    if where != "link":  # the folder behind the link is made
        assert not is_kept(second)
    same(first, second)


def test_a_cache_that_may_only_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = load_target(folder, "float32")

    def refused(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("utime", "replace", "unlink"):
        monkeypatch.setattr(os, name, refused)
    second = load_target(folder, "float32")
    assert is_kept(second)
    same(fresh, second)


def test_a_cache_behind_a_link(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real cache"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    monkeypatch.setenv("DSPARK_CACHE", str(link))
    fresh, second = load_target(folder, "float32"), load_target(folder, "float32")
    assert is_kept(second)
    same(fresh, second)


def test_what_an_older_version_kept_gives_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "made", lambda: "0123456789abcdef")
        load_target(folder, "float32")
        assert is_kept(load_target(folder, "float32"))
    (old,) = files()
    assert not kept.summary()[0]["usable"]
    fresh = load_target(folder, "float32")
    assert not is_kept(fresh)
    (new,) = files()
    assert old != new
    same(fresh, load_target(folder, "float32"))


def test_files_of_targets_that_are_gone_are_removed(folder: Path, tmp_path: Path) -> None:
    other = tiny_target_folder(tmp_path / "other", seed=1)
    load_target(folder, "float32")
    shutil.rmtree(folder)
    load_target(other, "float32")
    assert [found["target"] for found in kept.summary()] == [str(other.resolve())]


def test_half_files_that_nobody_goes_on_with_are_removed(folder: Path) -> None:
    kept.folder().mkdir(parents=True)
    old, young = kept.folder() / ".a.1.x.tmp", kept.folder() / ".b.2.x.tmp"
    for part in (old, young):
        part.write_text("")
    long_ago = time.time() - 2 * 3600
    os.utime(old, (long_ago, long_ago))
    load_target(folder, "float32")
    assert list(kept.folder().glob(".*")) == [young]


def test_all_files_together_stay_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tiny_target_folder(tmp_path / str(i), seed=i) for i in range(3)]
    load_target(folders[0], "float32")
    size = files()[0].stat().st_size
    monkeypatch.setenv(kept.LIMIT, str(2.5 * size / 2**30))
    load_target(folders[1], "float32")
    long_ago = time.time() - 60
    for path in files():
        os.utime(path, (long_ago, long_ago))
    assert is_kept(load_target(folders[0], "float32"))  # used last
    load_target(folders[2], "float32")
    names = {found["target"] for found in kept.summary()}
    assert names == {str(folders[0].resolve()), str(folders[2].resolve())}
    monkeypatch.setenv(kept.LIMIT, str(0.5 * size / 2**30))
    load_target(folders[1], "float32")
    assert not is_kept(load_target(folders[1], "float32"))


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(kept.LIMIT, text)
    with pytest.raises(ConfigError, match=kept.LIMIT):
        load_target(folder, "float32")


def test_nothing_is_kept_where_nothing_shall_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_target(folder, "float32")
    monkeypatch.setenv(kept.LIMIT, "0")
    assert not is_kept(load_target(folder, "float32"))


def test_a_disk_that_is_nearly_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FREE_BYTES", 2**60)
    load_target(folder, "float32")
    assert files() == []
    assert not is_kept(load_target(folder, "float32"))


def test_a_folder_that_changes_while_it_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = kept_target.keep

    def later(*args: Any) -> None:
        edit(folder)
        keep(*args)

    monkeypatch.setattr(kept_target, "keep", later)
    load_target(folder, "float32")
    assert files() == []


def test_blobs_come_back_as_they_were(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor | bytes] = {
        "a": torch.arange(7, dtype=torch.int32),
        "none": torch.empty(0, 3),
        "b": torch.randn(5, 3).bfloat16().T,
        "text": b"caf\xc3\xa9",
        "c": torch.randn(()).double(),
    }
    path = tmp_path / "deep" / "a.kept"
    kept_file.write(path, {"own": [1, None]}, tensors)
    fields = kept_file.read_header(path)
    assert fields is not None
    assert fields["own"] == [1, None]
    file = kept_file.KeptFile(path, fields)
    for name, value in tensors.items():
        if isinstance(value, bytes):
            assert file.text(name) == value
        else:
            assert torch.equal(file.tensor(name), value)
            assert file.tensor(name).dtype is value.dtype
            assert file.tensor(name).data_ptr() % kept_file.ALIGN == 0 or not value.numel()
