"""`dspark serve --engine`: from options to another program, which is made up here."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dspark.cli import main as cli
from dspark.drafters.checkpoint import save_drafter
from dspark.targets.target import load_target
from fakes import tiny_target_folder
from scripted import random_drafter

RECORD = """#!{python}
import json, pathlib, sys
pathlib.Path(sys.argv[0] + ".json").write_text(json.dumps(sys.argv[1:]))
sys.exit({code})
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("a home")
    target = load_target(tiny_target_folder(home / "the target"), "float32")
    save_drafter(random_drafter(target, block_size=4), home / "drafter")
    save_drafter(random_drafter(target, vocabulary=[5, 9, 11]), home / "reduced")
    return home


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("DSPARK_API_KEYS", raising=False)
    return tmp_path / "bin"


def install(folder: Path, name: str, code: int = 0) -> None:
    (folder / name).write_text(RECORD.format(python=sys.executable, code=code))
    (folder / name).chmod(0o755)


def told(folder: Path, name: str) -> list[str]:
    words: list[str] = json.loads((folder / f"{name}.json").read_text())
    return words


def line(home: Path, engine: str, *more: str, drafter: str = "drafter") -> list[str]:
    models = ["--target", str(home / "the target"), "--drafter", str(home / drafter)]
    return ["serve", *models, "--engine", engine, *more]


def printed(capfd: pytest.CaptureFixture[str]) -> list[list[str]]:
    out, err = capfd.readouterr()
    assert err == ""
    return [shlex.split(row) for row in out.splitlines() if not row.startswith("#")]


def test_options_carry_over(
    home: Path, programs: Path, tmp_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--host", "::1", "--port", "9", "--slots", "3", "--max-len", "99", "--dtype", "float32"]
    assert cli.main([*line(home, "vllm", *more), "--tensor-parallel", "2", "--print-command"]) == 0
    [command] = printed(capfd)
    words = command[command.index("--served-model-name") : command.index("--speculative-config")]
    assert shlex.join(words) == (
        "--served-model-name 'the target' --host ::1 --port 9 --dtype float32 "
        "--max-model-len 99 --max-num-seqs 3 --tensor-parallel-size 2"
    )
    assert command[2] == str(home / "the target")
    assert json.loads(command[-1])["model"] == str(home / "drafter")
    assert not list(programs.iterdir())


def test_what_is_not_said_is_as_here(
    home: Path, programs: Path, tmp_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line(home, "sglang", "--print-command")) == 0
    [command] = printed(capfd)
    pairs = dict(pairwise(command))
    assert pairs["--host"] == "127.0.0.1"
    assert pairs["--max-running-requests"] == "16"
    assert pairs["--context-length"] == "256"  # the target was made for no more
    assert cli.main(line(home, "sglang", "--print-command", "--policy", "off")) == 0
    [command] = printed(capfd)
    assert not [word for word in command if "speculative" in word]


def test_reduced_drafters_are_completed(
    home: Path, programs: Path, tmp_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line(home, "llama.cpp", "--print-command", drafter="reduced")) == 0
    target, drafter, server = printed(capfd)
    assert target[2] == drafter[4] == str(home / "the target")
    assert (Path(drafter[2]) / "model.safetensors").is_file()
    assert tmp_cache in Path(drafter[2]).parents
    assert Path(drafter[-1]).parent.is_dir()
    assert server[server.index("--model-draft") + 1] == drafter[-1]


def test_paths_mean_the_same_elsewhere(
    home: Path,
    programs: Path,
    tmp_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(home)
    argv = ["serve", "--target", "the target", "--drafter", "drafter", "--engine", "vllm"]
    assert cli.main([*argv, "--print-command"]) == 0
    [command] = printed(capfd)
    assert command[2] == str(home / "the target")
    assert json.loads(command[-1])["model"] == str(home / "drafter")


def test_all_nodes_or_one(
    home: Path, programs: Path, tmp_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--tensor-parallel", "2", "--nodes", "2", "--head-address", "h", "--print-command"]
    assert cli.main(line(home, "vllm", *more)) == 0
    assert [command[0] for command in printed(capfd)] == ["ray", "vllm", "ray"]
    assert cli.main([*line(home, "vllm", *more), "--node-rank", "1"]) == 0
    assert printed(capfd) == [["ray", "start", "--address=h:6379", "--block"]]


# ---- starting -------------------------------------------------------------------------------


def start(argv: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dspark.cli.main", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ)


def test_it_becomes_the_program(
    home: Path, programs: Path, tmp_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install(programs, "vllm", code=7)
    done = start(line(home, "vllm"))
    assert done.returncode == 7  # the program's own
    assert done.stderr.startswith("dspark: starting vllm serve ")
    assert cli.main(line(home, "vllm", "--print-command")) == 0
    assert printed(capfd) == [["vllm", *told(programs, "vllm")]]


def test_ray_comes_first(home: Path, programs: Path, tmp_cache: Path) -> None:
    install(programs, "vllm")
    install(programs, "ray")
    more = ["--tensor-parallel", "2", "--nodes", "2", "--head-address", "h"]
    assert start(line(home, "vllm", *more)).returncode == 0
    assert told(programs, "ray")[:2] == ["start", "--head"]
    assert told(programs, "vllm")[0] == "serve"
    (programs / "vllm.json").unlink()
    install(programs, "ray", code=3)
    done = start(line(home, "vllm", *more))
    assert done.returncode == 2
    assert "failed (found: exit code 3)" in done.stderr
    assert not (programs / "vllm.json").exists()


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "more", "words"),
    [
        ("vllm", [], "vllm is not installed (found: no such program on PATH). Install it"),
        ("sglang", [], "pip install sglang"),
        ("llama.cpp", [], "brew install llama.cpp"),
        ("tgi", [], "Unknown engine (found: tgi). Use vllm, sglang, llama.cpp"),
        ("vllm", ["--max-queue", "9"], "--max-queue has no counterpart in vllm"),
        ("vllm", ["--max-queue", "256"], "--max-queue has no counterpart"),  # our own default
        ("vllm", ["--log-prompts"], "--log-prompts has no counterpart"),
        ("sglang", ["--recalibrate"], "--recalibrate has no counterpart"),
        ("sglang", ["--cors-origin", "*"], "--cors-origin has no counterpart"),
        ("vllm", ["--threads", "2"], "--threads has no counterpart"),
        ("vllm", ["--api-key-file", "k"], "--api-key-file has no counterpart"),
        ("llama.cpp", ["--api-key-file", "k"], "Cannot read the key file k"),
        ("llama.cpp", ["--tensor-parallel", "2"], "--tensor-parallel has no counterpart"),
        ("sglang", ["--policy", "causal"], "no policy like causal"),
        ("sglang", ["--drafter", "none", "--policy", "fixed:2"], "needs a drafter"),
    ],
)
def test_refusals(
    home: Path,
    programs: Path,
    tmp_cache: Path,
    engine: str,
    more: list[str],
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*line(home, engine), *more]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_a_drafter_it_cannot_read(
    home: Path, programs: Path, tmp_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line(home, "sglang", "--print-command", drafter="reduced")) == 2
    assert "a draft vocabulary of 3, it reads only whole ones" in capfd.readouterr().err
    assert not tmp_cache.exists()


def test_gguf_files_that_are_not_made(
    home: Path, programs: Path, tmp_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install(programs, "llama-server")
    assert cli.main(line(home, "llama.cpp")) == 2
    assert "target-bf16.gguf is not there yet" in capfd.readouterr().err


def test_keys_in_the_environment_are_not_passed_over(
    home: Path,
    programs: Path,
    tmp_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DSPARK_API_KEYS", "sesame")
    assert cli.main(line(home, "vllm", "--print-command")) == 2
    err = capfd.readouterr().err
    assert "vllm does not read DSPARK_API_KEYS" in err
    assert "sesame" not in err


@pytest.mark.parametrize(
    "more",
    [["--print-command"], ["--nodes", "1"], ["--tensor-parallel", "1"], ["--head-address", "h"]],
)
def test_options_of_other_engines_alone(
    more: list[str], home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    models = ["--target", str(home / "the target"), "--drafter", "none"]
    assert cli.main(["serve", *models, *more]) == 2
    assert f"{more[0]} is for other engines. Add --engine" in capfd.readouterr().err
