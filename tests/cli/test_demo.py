"""`dspark demo` on a tiny target: the table, the figures file, the picture, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.artifacts import read_artifact
from dspark.cli import main as cli
from dspark.cli.demo import _progress, _Screen
from dspark.core import Request, SamplingParams, StepOutput
from dspark.data.prompts import Prompt
from dspark.errors import ConfigError
from dspark.evaluation import demo
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
    def verb(*argv: str) -> tuple[int, str, str]:
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

    return verb


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
        "--limit",
        "3",
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
    for fact in ("machine", "kernels", "policy"):
        assert result[fact] in " ".join(out.split())
    # What looks like markup in a prompt is text.
    assert "sort [/INST] three [red]birds[/red]" in out
    assert "[code]: accepted_length" in out


def test_quiet_shows_only_the_table(run: Run, prompts: Path) -> None:
    code, out, err = run("--data", str(prompts), "--quiet", "--limit", "3")
    assert code == 0
    assert "add the rain" not in out
    assert "accepted_length" in out
    assert err.strip() == ""  # the bar is for people


def test_a_bar_while_nothing_else_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    request = Request(0, [1], SamplingParams())
    output = StepOutput(request, [], [], finished=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")  # as on a terminal
        with _progress(3) as show:
            for prompt in ("a", "b"):
                show("plain", Prompt(prompt, []), output)
                request.output_ids += [1] * 20
    err = capsys.readouterr().err
    assert "prompt 1 of at most 3, plain: 0 tokens" in err
    assert "prompt 2 of at most 3, plain: 16 tokens" in err


@pytest.mark.parametrize(
    ("argv", "seconds", "count"),
    [
        ([], 60, 3),
        (["--seconds", "5"], 5, 3),
        (["--limit", "2"], None, 2),
        (["--limit", "2", "--seconds", "7.5"], 7.5, 2),
    ],
)
def test_seconds_and_limit(
    run: Run,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    seconds: float | None,
    count: int,
) -> None:
    asked: list[tuple[float | None, int]] = []

    def stop(target: Any, drafter: Any, prompts: list[Prompt], *_: Any, **options: Any) -> None:
        asked.append((options["seconds"], len(prompts)))
        raise ConfigError("far enough")

    monkeypatch.setattr(demo, "run", stop)
    assert run("--data", str(prompts), *argv)[0] == 2
    assert asked == [(seconds, count)]


def test_ctrl_c_prints_the_table_of_what_is_finished(
    run: Run, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, file = _Screen.show, tmp_path / "demo.json"

    def show(self: _Screen, way: str, prompt: Prompt, output: StepOutput) -> None:
        real(self, way, prompt, output)
        if prompt.id == "c":
            raise KeyboardInterrupt

    monkeypatch.setattr(_Screen, "show", show)
    code, out, err = run("--data", str(prompts), "--limit", "3", "--json", str(file))
    assert (code, err) == (130, "dspark: interrupted; finished work is kept\n")
    assert "2 prompts" in out
    result = read_artifact(file, "dspark.demo/1")
    assert (result["prompts"], result["interrupted"]) == (2, True)


@pytest.mark.parametrize(
    ("speedup", "said"),
    [
        (0.9312, "On this machine drafting does not pay: 0.93 times plain decoding. `dspark "),
        (0.996, ""),
        (1.3, ""),
    ],
)
def test_it_says_when_drafting_does_not_pay(
    run: Run, prompts: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, said: str
) -> None:
    real = demo.run
    monkeypatch.setattr(demo, "run", lambda *a, **o: real(*a, **o) | {"speedup": speedup})
    _, out, _ = run("--data", str(prompts), "--limit", "1", "--quiet")
    assert said in out
    assert ("does not pay" in out) == bool(said)


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
