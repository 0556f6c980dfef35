"""The memory floor: what a step must read, and where its time goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from dspark.evaluation import floor
from dspark.targets.hf_loading import load_module
from dspark.targets.target import load_target
from fakes import FAMILIES, tiny_target_folder


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_counted_once(family: str, tmp_path: Path) -> None:
    folder = tiny_target_folder(tmp_path, family)
    module, _ = load_module(folder, "float32")
    matrices = {p.data_ptr(): p for p in module.parameters() if p.dim() == 2}
    head = module.get_output_embeddings().weight
    embedding = module.get_input_embeddings().weight
    if embedding.data_ptr() != head.data_ptr():  # one row of it is read
        del matrices[embedding.data_ptr()]
    expected = sum(p.numel() for p in matrices.values()) * 4
    assert floor.weight_bytes(load_target(folder, "float32").spec, 4) == expected


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_fused_rms_norm", "norms"),
        ("aten::index_copy_", "cache writes"),
        ("aten::argmax", "choosing the token"),
        ("aten::cat", "everything else"),
    ],
)
def test_kinds_of_work(operation: str, kind: str) -> None:
    assert floor.kind_of(operation) == kind


def test_the_verb(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "BUFFER", 2**20)
    file = tmp_path / "floor.json"
    line = ["bench", "floor", "--target", str(tiny_target_folder(tmp_path / "t"))]
    assert cli.main([*line, "--dtype", "float32", "--steps", "4", "--json", str(file)]) == 0
    assert "times the floor" in capfd.readouterr().out
    found = read_artifact(file, "dspark.floor/1")
    assert found["ratio"] == pytest.approx(found["step_ms"] / found["floor_ms"], rel=0.01)
    assert sum(row["share"] for row in found["shares"]) == pytest.approx(1, abs=0.01)
    assert found["shares"][0]["share"] > 0
