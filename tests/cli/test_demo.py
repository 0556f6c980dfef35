"""`dspark demo` on a tiny target: the table, the figures file, the picture, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from fakes import write_jsonl
from tiny import tiny_drafter, tiny_home

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tiny_home(tmp_path_factory.mktemp("home"), count=16)
    tiny_drafter(home)
    return home


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {"id": "a", "domain": "math", "prompt": "add the rain"},
        {"id": "b[/bold]", "domain": "[code]", "prompt": "sort [/INST] three [red]birds[/red]"},
        {"id": "c", "domain": "chat", "prompt": "name a river"},
    ]
    return write_jsonl(tmp_path / "prompts.jsonl", rows)


@pytest.fixture
def run(home: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def demo(*argv: str) -> tuple[int, str, str]:
        line = ["demo", *argv, "--target", str(home / "target")]
        for option, value in (
            ("--drafter", str(home / "run" / "drafter")),
            ("--dtype", "float32"),
            ("--max-new-tokens", "16"),
        ):
            line += [] if option in argv else [option, value]
        code = cli.main(line)
        out, err = capfd.readouterr()
        return code, out, err

    return demo


def test_table_file_and_picture(run: Run, prompts: Path, tmp_path: Path) -> None:
    file, plot = tmp_path / "r" / "demo.json", tmp_path / "r" / "demo.png"
    code, out, err = run(
        "--data",
        str(prompts),
        "--compare",
        "transformers",
        "--json",
        str(file),
        "--plot",
        str(plot),
    )
    assert (code, err) == (0, "")
    result = read_artifact(file, "dspark.demo/1")
    assert result["prompts"] == 3
    assert result["identical_texts"] == 1.0
    assert result["dtype"] == "float32"
    assert result["transformers_tokens_per_s"] > 0
    assert result["provenance"]["command"] == "dspark demo"
    assert len(result["provenance"]["inputs"]) == 1
    assert plot.read_bytes()[:4] == b"\x89PNG"
    for words in ("plain", "dspark", "transformers generate", "identical texts  100%"):
        assert words in out
    assert f"{result['dspark_tokens_per_s']:.1f}" in out
    # What looks like markup in a prompt is text.
    assert "sort [/INST] three [red]birds[/red]" in out
    assert "[code]: accepted_length" in out


def test_quiet_shows_only_the_table(run: Run, prompts: Path) -> None:
    code, out, _ = run("--data", str(prompts), "--quiet")
    assert code == 0
    assert "add the rain" not in out
    assert "accepted_length" in out


def test_bundled_prompts_and_a_limit(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    code, _, _ = run("--limit", "3", "--quiet", "--json", str(file), "--temperature", "1")
    result = read_artifact(file, "dspark.demo/1")
    assert code == 0
    assert result["prompts"] == 3
    assert set(result["domains"]) == {"math", "code", "chat", "macro"}
    assert result["temperature"] == 1.0
    assert result["provenance"]["inputs"] == {}
    assert result["provenance"]["seeds"] == {"seed": 0}


def test_one_token_answers_are_written_as_null(run: Run, prompts: Path, tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    code, _, _ = run("--data", str(prompts), "--max-new-tokens", "1", "--json", str(file))
    assert code == 0
    assert read_artifact(file, "dspark.demo/1")["accepted_length"] is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--drafter", "none"], "with and without a drafter"),
        (["--compare", "llama.cpp"], "Unknown --compare (found: llama.cpp)"),
        (["--compare", "transformers", "--temperature", "1"], "is greedy"),
        (["--data", "missing.jsonl"], "data file 'missing.jsonl' does not exist"),
        (["--limit", "0"], "--limit"),
        (["--drafter", "nowhere"], "There is no drafter nowhere"),
        (["--dtype", "int3"], "Unknown dtype"),
        (["--limit", "1", "--policy", "often"], "Unknown policy"),
        (["--limit", "30"], "longer than the target's context"),
        (["--temperature", "-1"], "temperature is out of range"),
    ],
)
def test_refusals(run: Run, argv: list[str], words: str) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("dspark: error: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_files_that_cannot_be_written_are_named_before_the_work(
    run: Run, tmp_path: Path, prompts: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr("dspark.cli.demo.load_models", None)  # would raise if it came to that
    for place in (tmp_path, tmp_path / "file" / "x.out"):
        code, out, err = run("--data", str(prompts), option, str(place))
        assert (code, out) == (2, "")
        assert err.startswith("dspark: error: cannot write ")
    assert (tmp_path / "file").read_text() == "kept"
