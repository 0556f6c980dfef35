"""`--weights int8` through the verbs: what they answer, what they say of it, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dspark import native
from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from dspark.cli import serve
from dspark.drafters.checkpoint import save_drafter
from dspark.evaluation import floor
from dspark.targets.target import load_target
from fakes import tiny_target_folder
from scripted import random_drafter

needs_kernels = pytest.mark.skipif(native.usable() == (native.TORCH,), reason="no kernels here")
VERBS = ["generate", "demo", "serve", "audit", "eval", "calibrate", "confidence", "profile"]
BENCHES = ["floor", "head", "load", "peers", "serve"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    target = load_target(tiny_target_folder(home / "target"), "float32")
    save_drafter(random_drafter(target, 4, gain=5.0), home / "drafter")
    return home


def line(home: Path, verb: str, *more: str, weights: str = "int8") -> list[str]:
    models = ["--target", str(home / "target"), "--drafter", str(home / "drafter")]
    return [verb, *models, "--dtype", "float32", "--weights", weights, *more]


@needs_kernels
def test_an_answer_is_that_of_plain_decoding_with_the_same_weights(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = []
    for drafter in (str(home / "drafter"), "none"):
        more = ["count to nine", "--drafter", drafter, "--json", "--max-new-tokens", "30"]
        assert cli.main(line(home, "generate", *more)) == 0
        found.append(json.loads(capfd.readouterr().out)["token_ids"])
    assert found[0] == found[1]


@needs_kernels
@pytest.mark.parametrize(
    ("weights", "dtype", "against"),
    [
        ("int8", "float32+int8", "plain decoding with the same int8 weights"),
        ("same", "float32", "plain decoding"),
    ],
)
def test_an_audit_says_what_it_compares_with(
    weights: str,
    dtype: str,
    against: str,
    home: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    more = ["--limit", "2", "--samples", "1", "--max-new-tokens", "8"]
    more += ["--json", str(tmp_path / "audit.json")]
    assert cli.main(line(home, "audit", *more, weights=weights)) in (0, 3)
    found = read_artifact(tmp_path / "audit.json", "dspark.audit/1")
    assert (found["dtype"], found["against"]) == (dtype, against)
    assert found["greedy"]["identical"] == found["seeds"]["identical"] == 1
    assert f"against {against}" in " ".join(capfd.readouterr().out.split())


@needs_kernels
def test_a_demo_names_the_weights(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--limit", "2", "--quiet", "--policy", "fixed:4", "--max-new-tokens", "6"]
    assert cli.main(line(home, "demo", *more, "--json", str(tmp_path / "demo.json"))) == 0
    assert "float32+int8" in capfd.readouterr().out
    found = read_artifact(tmp_path / "demo.json", "dspark.demo/1")
    assert (found["dtype"], found["identical_texts"]) == ("float32+int8", 1)


@needs_kernels
def test_the_floor_is_that_of_the_bytes_read(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "BUFFER", 2**20)
    sizes = []
    for weights in ("same", "int8"):
        file = tmp_path / f"{weights}.json"
        command = ["bench", "floor", "--target", str(home / "target"), "--dtype", "float32"]
        command += ["--weights", weights, "--steps", "4", "--json", str(file)]
        assert cli.main(command) == 0
        sizes.append(read_artifact(file, floor.SCHEMA)["weight_mib"])
    assert sizes[0] == pytest.approx(4 * sizes[1], rel=0.1)


@needs_kernels
def test_serve_says_so_before_it_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dspark.server.run.Server.run", lambda self, sockets: None)
    monkeypatch.setattr(serve, "_log_to_stderr", lambda: None)
    more = ["--port", "0", "--policy", "fixed:4", "--slots", "1", "--max-len", "64"]
    assert cli.main(line(home, "serve", *more)) == 0
    assert "target runs in float32+int8" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--weights", "int4"], "Unknown weights (found: int4). Use one of same, int8"),
        (["--dtype", "float16"], "not served here (found: dtype float16"),
    ],
)
def test_refusals(
    more: list[str], words: str, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line(home, "generate", "hello", *more)) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_other_engines_have_no_counterpart(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = ["--target", str(home / "target"), "--drafter", "none", "--engine", "vllm"]
    more += ["--weights", "int8"]
    assert cli.main(["serve", *more]) == 2
    assert "--weights has no counterpart in vllm" in capfd.readouterr().err


@pytest.mark.parametrize("words", [[verb] for verb in VERBS] + [["bench", b] for b in BENCHES])
def test_verbs_that_run_a_target_take_the_option(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--help"]) == 0
    assert "--weights" in capfd.readouterr().out
