"""Two runs on one output: the second stops with a line, before any work, and nothing is mixed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspark.artifacts import append_jsonl, read_jsonl
from dspark.cli import main as cli
from tiny import home_with_drafter

HOLD = """
import sys
from dspark import artifacts
with artifacts.hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""

# Options and arguments of each verb that writes, and the file it holds; OUT stands for it.
DRAFTER = ["--drafter", "drafter"]
VERBS: dict[str, tuple[list[str], str]] = {
    "train": (["--config", "recipe.toml"], "out/train_log.jsonl"),
    "store": (["--config", "recipe.toml", "--out", "states"], "states/store.json"),
    "regenerate": (["--prompts", "prompts.jsonl", "--out", "OUT"], "new.jsonl"),
    "eval --json": (["--data", "prompts.jsonl", *DRAFTER, "--json", "OUT"], "eval.json"),
    "eval --trace": (["--data", "prompts.jsonl", *DRAFTER, "--trace", "OUT"], "trace.jsonl"),
    "calibrate": (["--data", "prompts.jsonl", *DRAFTER], "drafter/calibration.json"),
    "calibrate --json": (["--data", "prompts.jsonl", *DRAFTER, "--json", "OUT"], "check.json"),
    "confidence": (["--data", "prompts.jsonl", *DRAFTER], "drafter/calibration.json"),
    "confidence --json": (["--data", "prompts.jsonl", *DRAFTER, "--json", "OUT"], "fit.json"),
    "compare --json": (["run", "--json", "OUT"], "runs.json"),
    "compare --json --rounds": (
        ["--rounds", "drafter", "--data", "answers.jsonl", "--whole", "--json", "OUT"],
        "rounds.json",
    ),
    "profile --json": ([*DRAFTER, "--json", "OUT"], "cost.json"),
    "profile --plot": ([*DRAFTER, "--plot", "OUT"], "cost.png"),
    "demo --json": ([*DRAFTER, "--json", "OUT"], "demo.json"),
    "demo --plot": ([*DRAFTER, "--plot", "OUT"], "demo.png"),
    "audit --json": ([*DRAFTER, "--json", "OUT"], "audit.json"),
    "report": (["results", "--out", "page"], "page/index.html"),
    "bench floor --json": (["--json", "OUT"], "floor.json"),
    "bench head --json": ([*DRAFTER, "--json", "OUT"], "head.json"),
    "bench kernels --json": (["--json", "OUT"], "kernels.json"),
    "bench kernels --plot": (["--plot", "OUT"], "kernels.png"),
    "bench load --json": ([*DRAFTER, "--json", "OUT"], "load.json"),
    "bench peers --json": ([*DRAFTER, "--json", "OUT"], "peers.json"),
    "bench serve --json": ([*DRAFTER, "--json", "OUT"], "serve.json"),
    "bench start --json": ([*DRAFTER, "--json", "OUT"], "start.json"),
    "bench weights --json": (["--data", "answers.jsonl", "--json", "OUT"], "weights.json"),
}
WRITING = {"--json", "--plot", "--trace", "--out"}
# Whose --json is a way to print.
PRINTING = {"train", "generate", "doctor"}


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for verb, inner in command.commands.items():
        yield from leaves(inner, f"{name} {verb}".strip())


def test_every_verb_that_writes_is_listed() -> None:
    """A new one gets its place above."""
    missing = []
    for verb in cli.VERBS:
        for name, command in leaves(cli._load(verb), verb):
            options = {opt for param in command.params for opt in param.opts} & WRITING
            if name in PRINTING:
                options.discard("--json")
            listed = [key for key in VERBS if key.split(" --")[0] == name]
            words = {word for key in listed for word in [*VERBS[key][0], *key.split()]}
            missing += [f"{name} {option}" for option in options if option not in words]
    assert not missing


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return home_with_drafter(tmp_path_factory.mktemp("home"))


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything the verbs name, and a recipe."""
    for name in ("target", "drafter", "answers.jsonl", "prompts.jsonl"):
        (tmp_path / name).symlink_to(home / name)
    (tmp_path / "recipe.toml").write_text(
        """
        target = "./target"
        out = "out"
        data.responses = ["answers.jsonl"]
        data.held_out_share = 0.3
        drafter = {block_size = 4, num_layers = 1, markov_rank = 8, intermediate_size = 96}
        run = {dtype = "float32", steps = 40, sequences_per_step = 4, log_every = 1}
        """
    )
    append_jsonl(tmp_path / "run" / "train_log.jsonl", [{"kind": "train", "step": 1}])
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def holder(path: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("name", VERBS)
def test_the_second_run_stops_before_any_work(
    name: str, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("dspark.targets.target.load_module", "dspark.targets.target.load_spec"):
        monkeypatch.setattr(module, lambda *_: pytest.fail("a model is loaded"))
    arguments, output = VERBS[name]
    if name == "compare --json":
        monkeypatch.setattr("dspark.evaluation.runs.find_runs", lambda runs: [])
    line = [*name.split(" --")[0].split(), *(output if a == "OUT" else a for a in arguments)]
    if name.split()[0] not in ("train", "store", "report") and name != "compare --json":
        line += ["--target", "./target"]
    child = holder(here / output)
    try:
        before = files(here)
        code = cli.main(line)
        out, err = capfd.readouterr()
        assert (code, out) == (2, "")
        last = err.splitlines()[-1]
        assert last.startswith("dspark: error: another run writes ")
        assert f"process {child.pid} on" in last
        assert "Traceback" not in err
        assert files(here) == before
    finally:
        child.kill()
        child.communicate()


def start(*line: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dspark.cli.main", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"DSPARK_CACHE": str(cwd / "cache"), "DSPARK_KERNELS": "torch"},
    )


@pytest.mark.parametrize("verb", ["train", "regenerate", "eval --trace"])
def test_two_at_once(verb: str, here: Path) -> None:
    """One does the work, as if it were alone; the other says so."""
    arguments, output = VERBS[verb]
    line = [verb.split()[0], *(output if a == "OUT" else a for a in arguments)]
    if verb != "train":
        line += ["--target", "./target", "--dtype", "float32", "--max-new-tokens", "16"]
    pair = [start(*line, cwd=here) for _ in range(2)]
    ends = [child.communicate(timeout=600) for child in pair]
    codes = sorted(child.returncode for child in pair)
    rows = list(read_jsonl(here / output))
    if codes == [0, 2]:
        loser = next(child for child in pair if child.returncode == 2)
        assert "another run writes" in ends[pair.index(loser)][1]
    else:  # one after the other: the second found nothing left to do
        assert codes == [0, 0], ends
    if verb == "train":
        steps = [row["step"] for row in rows if row["kind"] == "train"]
        assert steps == list(range(1, 41))
    elif verb == "regenerate":
        assert sorted(row["id"] for row in rows) == sorted(f"p{i}" for i in range(24))
    else:
        places = [(row["prompt"], row["round"]) for row in rows[1:]]
        assert len(places) == len(set(places))
        assert len({prompt for prompt, _ in places}) == 24
    assert not list(here.rglob(".*.lock"))


def test_a_verb_gives_its_outputs_back(here: Path) -> None:
    line = ["train", "--config", "recipe.toml", "--set", "run.steps=1"]
    assert cli.main([*line, "--set", "target=./nowhere"]) == 2
    assert not (here / "out").exists()  # nothing was made for nothing
    assert cli.main(line) == 0
    assert cli.main(line) == 0
    assert not list(here.rglob(".*.lock"))
