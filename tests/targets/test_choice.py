"""What a target runs with: chosen by what was measured, once a machine, and never in the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark import native
from dspark.errors import CheckpointError
from dspark.targets import choice
from dspark.targets.family import TargetSpec
from dspark.targets.target import load_target
from fakes import tiny_target_folder

BEST = native.usable()[-1]
LEAN = TargetSpec("llama", 512, 8, 8, 4, 64, 1024, 4096, 1e-6, 512)
MS = {
    "torch float32": (10.0, 11.0, 40.0),
    "torch bfloat16": (12.0, 30.0, 60.0),
    f"{BEST} float32": (9.0, 9.5, 30.0),
    f"{BEST} bfloat16": (5.0, 15.0, 60.0),
}


@pytest.fixture
def measured(tmp_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts measurements, which find `MS`."""
    calls: list[int] = []
    monkeypatch.setattr(choice, "measure", lambda spec, eight_bits=False: calls.append(1) or MS)
    monkeypatch.delenv("DSPARK_KERNELS", raising=False)
    return calls


def test_the_fastest_for_a_step_a_draft_and_many_rows_together(measured: list[int]) -> None:
    found = choice.choose(LEAN)
    assert (found.level, found.dtype) == (BEST, "float32")
    assert "9.0 ms with 1, 9.5 ms with 6 and 30.0 ms with 32 rows" in found.reason
    assert choice.choose(LEAN, "bfloat16").dtype == "bfloat16"


def test_measured_once_a_machine(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        choice.choose(LEAN)
    assert len(measured) == 1
    choice.choose(replace(LEAN, hidden_size=256))
    assert len(measured) == 2
    monkeypatch.setattr(choice, "cpu_model", lambda: "another")
    choice.choose(LEAN)
    assert len(measured) == 3


@pytest.mark.parametrize("content", ["", "{}", '{"schema": "dspark.choice/1"}', "half a li"])
def test_a_damaged_record_is_measured_again(
    content: str, measured: list[int], tmp_cache: Path
) -> None:
    choice.choose(LEAN)
    (kept,) = (tmp_cache / "choice").iterdir()
    kept.write_text(content)
    assert choice.choose(LEAN).level == BEST
    assert len(measured) == 2
    assert json.loads(kept.read_text())["ms"]


def test_a_cache_that_cannot_be_written(
    measured: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "file" / "cache"))
    assert choice.choose(LEAN).level == BEST


def test_other_families_go_by_what_pytorch_takes(measured: list[int]) -> None:
    """The kernels serve their drafters all the same."""
    found = choice.choose(replace(LEAN, model_type="gpt2"))
    assert (found.level, found.dtype) == (BEST, "float32")


@pytest.mark.parametrize("level", native.usable())
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_other_families_at_a_level_that_is_asked_for(
    level: str, dtype: str, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPARK_KERNELS", level)
    found = choice.choose(replace(LEAN, model_type="gpt2"), dtype)
    assert (found.level, found.dtype) == (level, "float32" if dtype == "auto" else dtype)


@pytest.mark.skipif(BEST == "torch", reason="no kernels on this machine")
def test_pytorch_serves_only_where_it_is_far_faster(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the products it needs as long again."""
    monkeypatch.setitem(MS, "torch float32", (6.0, 6.0, 20.0))
    assert choice.choose(LEAN).level == BEST
    monkeypatch.setitem(MS, "torch float32", (3.0, 3.0, 10.0))
    (folder,) = {path.parent for path in (Path(choice.cache_dir()) / "choice").iterdir()}
    for path in folder.iterdir():
        path.unlink()
    assert choice.choose(LEAN).level == "torch"


def test_a_level_that_is_asked_for_stays(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPARK_KERNELS", "torch")
    found = choice.choose(LEAN)
    assert (found.level, found.dtype) == ("torch", "float32")
    assert "DSPARK_KERNELS=torch" in found.reason


def test_nothing_is_measured_without_need(measured: list[int]) -> None:
    assert choice.choose(LEAN, device="cuda").dtype == "bfloat16"
    assert choice.choose(LEAN, "float16").dtype == "float16"
    assert choice.choose(replace(LEAN, num_layers=1, vocab_size=100)).level == BEST
    assert not measured


def test_times_of_every_level_and_type() -> None:
    found = choice.measure(LEAN)
    assert set(found) == {f"{lv} {dtype}" for lv in native.usable() for dtype in choice.DTYPES}
    assert all(len(times) == len(choice.ROWS) and min(times) > 0 for times in found.values())


def test_a_crowd_that_leaves_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The better level is held up in every repeat of the first seven."""
    turns = {"good": 0, "bad": 0}

    class Scripted:
        def seconds(self, rows: int, level: str) -> float:
            turns[level] += 1
            crowd = 50.0 / turns[level] if level == "good" and turns[level] < 16 else 0.0
            return crowd + {"good": 1.0, "bad": 2.0}[level]

    made = {level: Scripted() for level in turns}
    monkeypatch.setattr(choice, "by_level", lambda *rest: made)
    found = choice._of_dtype([], "float32", 1.0, False)
    assert found["good float32"] < found["bad float32"]
    assert max(turns.values()) <= len(choice.ROWS) * (choice.MOST + 1)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32", "float16"])
@pytest.mark.parametrize("level", [native.TORCH, BEST])
def test_every_type_is_served(
    dtype: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without kernels too, and where oneDNN refuses to lay bfloat16 out, as on AVX2 alone."""
    before = native.current()
    monkeypatch.setenv("DSPARK_KERNELS", level)
    monkeypatch.setattr("dspark.targets.layers.can_reorder", lambda weight: False)
    target = load_target(tiny_target_folder(tmp_path / "target", "llama"), dtype)
    native.use(before)
    if dtype != "auto":
        assert target.dtype is getattr(torch, dtype)
    with torch.inference_mode():
        assert (
            target.logits(torch.ones(2, target.spec.hidden_size, dtype=target.dtype))
            .isfinite()
            .all()
        )


def test_an_unknown_type_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Unknown dtype.*int3"):
        load_target(tmp_path / "nothing", "int3")
