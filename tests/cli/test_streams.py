"""Standard streams that are closed, full, or whose reader went away: a line or silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRINTS = """
    for number in range(20000): print(number)"""
RICH = """
    from rich.console import Console
    Console(highlight=False).print("\\n".join(map(str, range(20000))))"""
BAR = """
    import sys
    from dspark.cli.common import passing_bar
    with passing_bar() as bar:
        bar.add_task("under way")
        bar.print("a remark")
    print("remark", file=sys.stderr)
    print("the result")"""
INPUT = """
    from dspark.cli.texts import given_text
    open("/dev/zero").close()  # does not get the number of standard input
    print(len(given_text("-")))"""
WAYS = {"print": PRINTS, "rich": RICH}

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def run(body: str, redirection: str) -> tuple[int, str, str]:
    """A verb with this body, in a process whose shell redirects so; code, output, remarks."""
    code = (
        "from types import SimpleNamespace\n"
        "from dspark.cli import main as cli\n"
        f"def command():{body}\n"
        "cli.import_module = lambda name: SimpleNamespace(command=command)\n"
        "raise SystemExit(cli.main(['doctor']))\n"
    )
    shell = f'set -o pipefail; "{sys.executable}" -c "$CODE" {redirection}'
    done = subprocess.run(
        ["bash", "-c", shell],
        capture_output=True,
        text=True,
        env=os.environ | {"CODE": code},
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@needs_full
@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_behind_the_output_is_a_line(way: str) -> None:
    code, _, err = run(WAYS[way], ">/dev/full")
    assert code == 2
    assert err.startswith("dspark: error: cannot write standard output (found: No space left")
    assert err.count("\n") == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_reader_that_goes_away_is_no_error(way: str) -> None:
    assert run(WAYS[way], "| head -1") == (0, "0\n", "")


@pytest.mark.parametrize("way", WAYS)
def test_a_closed_output_is_nowhere(way: str) -> None:
    assert run(WAYS[way], ">&-") == (0, "", "")


def test_remarks_never_end_up_in_the_output() -> None:
    assert run(BAR, "2>&-") == (0, "the result\n", "")


@needs_full
def test_remarks_that_cannot_be_written_end_nothing() -> None:
    assert run(BAR, "2>/dev/full") == (0, "the result\n", "")


def test_a_closed_input_is_said() -> None:
    code, out, err = run(INPUT, "<&-")
    assert (code, out) == (2, "")
    assert err == (
        "dspark: error: Standard input is closed. Pipe the prompt in, or give it as an argument\n"
    )
    assert run(INPUT, "</dev/null")[:2] == (0, "0\n")


@needs_full
@pytest.mark.parametrize("argv", ["--version", "--help", "fetch --help", "doctor", "doctor --json"])
def test_real_verbs_on_a_full_disk(argv: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m dspark.cli.main {argv} >/dev/full'],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("dspark: error: cannot write standard output")
    assert "Traceback" not in done.stderr
