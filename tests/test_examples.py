"""The examples run as a newcomer would run them, and stay short."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dspark import SamplingParams, load_target
from dspark.drafters.checkpoint import load_drafter
from dspark.engine.engine import Engine
from tiny import tiny_drafter, tiny_home

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))
MOST_LINES = {"reference.py": 190}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_short_and_compiles(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < MOST_LINES.get(path.name, 60)
    compile(text, str(path), "exec")


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_train_tiny_runs(tmp_path: Path) -> None:
    out = run("train_tiny.py", str(tmp_path))
    last = out.splitlines()[-1]
    assert "same text as without drafts: True" in last
    length = float(re.search(r"accepted_length ([\d.]+)", last)[1])  # type: ignore[index]
    assert length > 1.2  # rounding differs between machines; 1 is a drafter that learnt nothing
    assert (tmp_path / "run" / "drafter" / "model.safetensors").is_file()


def run_here(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """As `run`, without loading torch and transformers once more."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capfd.readouterr().out


def test_generate_runs(
    default_target: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = run_here("generate.py", monkeypatch, capfd, "Name three fruits.")
    assert re.search(r"\d+ tokens, \d+ tokens/s, finished by (stop|length)", out)


def test_stream_async_runs(
    default_target: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = run_here("stream_async.py", monkeypatch, capfd)
    ends = re.findall(r"^(\d): \d+ tokens, finished by (?:stop|length)$", out, re.MULTILINE)
    assert sorted(ends) == ["1", "2", "3"]


# ---- the paper's loop ------------------------------------------------------------------------


def test_the_reference_decodes_as_the_engine(tmp_path: Path) -> None:
    """Equal drafts, confidences, accepted counts and greedy texts, with a drafter that learnt."""
    from transformers import AutoModelForCausalLM

    reference = runpy.run_path(str(EXAMPLES / "reference.py"))
    home = tiny_home(tmp_path)
    folder = tiny_drafter(home, 80, drafter={"draft_vocab_size": 80, "num_layers": 2})
    target = load_target(home / "target", "float32")
    drafter = load_drafter(folder, target)
    plain = AutoModelForCausalLM.from_pretrained(home / "target")
    most, accepted = 40, []
    for prompt in ("say 3", "the other rain in the hat", "10 + 4 = ?"):
        ids = target.encode(prompt)
        engine = Engine(target, drafter, "fixed:4", slots=1)  # whole blocks
        (request,) = engine.generate([ids], SamplingParams(max_new_tokens=most))
        free = [1.0] * 5  # draft tokens that cost nothing are all verified
        output, rounds = reference["generate"](plain, folder, ids, most, seconds=free)
        assert output == request.output_ids
        for (confidences, _), record in zip(rounds, request.rounds, strict=True):
            assert confidences == pytest.approx(record.confidence, abs=1e-4)
        # The engine cuts what it counts of the last round at the limit.
        accepted += [count for _, count in rounds[:-1]]
        assert accepted[-len(rounds) + 1 :] == [r.accepted for r in request.rounds[:-1]]

        output, _ = reference["generate"](plain, folder, ids, most)
        assert output == request.output_ids  # whatever Algorithm 1 chose
    assert max(accepted) >= 2

    torch.manual_seed(0)
    output, _ = reference["generate"](plain, folder, ids, most, temperature=1.0)
    assert 1 <= len(output) <= most


def test_the_reference_stops_at_the_first_dip() -> None:
    """Appendix A's example: looking past the dip would verify two tokens."""
    verify_length = runpy.run_path(str(EXAMPLES / "reference.py"))["verify_length"]
    seconds = [1.0, 2.0, 1 / 0.45]
    assert verify_length([0.8, 0.9], seconds) == verify_length([0.8, 0.0], seconds) == 0
    assert verify_length([0.8, 0.9], [1.0, 1.1, 1.2]) == 2


def test_the_reference_keeps_the_targets_distribution() -> None:
    """One draft token, two tokens to say: the first one committed follows p_t, not p_d."""
    verify = runpy.run_path(str(EXAMPLES / "reference.py"))["verify"]
    torch.manual_seed(0)
    draft, target = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.8, 0.2], [1.0, 0.0]])
    firsts = []
    for _ in range(4000):
        token = int(torch.multinomial(draft[0], 1))
        accepted, last = verify([token], draft, target)
        firsts.append(token if accepted else last)
    assert sum(firsts) / 4000 == pytest.approx(0.2, abs=0.03)
