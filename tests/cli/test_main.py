"""The front door: verbs, version, and every error in one line with the right exit code."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dspark import __version__
from dspark.cli import main as cli
from dspark.errors import CheckpointError


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a function in the place of the verb `doctor`."""

    def put(command: Any) -> None:
        monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(command=command))

    return put


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"dspark {__version__}\n", "")


def test_help_lists_verbs_that_exist(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.VERBS, "invented", "A verb without a file.")
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "fetch" in out
    assert "doctor" in out
    assert "invented" not in out


def test_every_listed_verb_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in cli.LazyGroup().list_commands(None):
        code, out, _ = run(capsys, verb, "--help")
        assert code == 0
        assert "Example" in out, verb


def test_no_arguments_show_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert code == 2
    assert "Usage" in out + err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fech"], "did you mean 'fetch'"),
        (["xyzzy"], "no verb 'xyzzy'; there are: "),
        (["doctor", "--jsn"], "--json"),
        (["fetch", "a", "b"], "Try: dspark fetch --help"),
        (["fetch", "nope"], "unknown target (found: nope)"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("dspark: error: ")
    assert words in err
    assert err.count("\n") == 1


def test_our_errors_are_one_line(capsys: pytest.CaptureFixture[str], verb: Any) -> None:
    def command() -> None:
        raise CheckpointError("it\nbroke", found=3, fix="Mend it")

    verb(command)
    assert run(capsys, "doctor") == (2, "", "dspark: error: it broke (found: 3). Mend it\n")


def test_ctrl_c(capsys: pytest.CaptureFixture[str], verb: Any) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    verb(command)
    code, _, err = run(capsys, "doctor")
    assert code == 130
    assert err == "dspark: interrupted; finished work is kept\n"


def test_bugs_keep_their_traceback(verb: Any) -> None:
    def command() -> None:
        raise ZeroDivisionError

    verb(command)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS])
def test_surroundings_are_one_line(
    number: int, capsys: pytest.CaptureFixture[str], verb: Any
) -> None:
    def command() -> None:
        raise OSError(number, os.strerror(number), "there/x.json")

    verb(command)
    code, out, err = run(capsys, "doctor")
    assert (code, out) == (2, "")
    assert err.startswith(f"dspark: error: cannot use there/x.json (found: {os.strerror(number)})")
    assert err.count("\n") == 1


def test_other_system_errors_are_bugs(verb: Any) -> None:
    def command() -> None:
        open("/proc/nothing/of/this/name").close()

    verb(command)
    with pytest.raises(FileNotFoundError):
        cli.main(["doctor"])


@pytest.mark.parametrize(
    "argv",
    [
        ["regenerate", "--prompts", "LONG", "--out", "x.jsonl"],
        ["eval", "--data", "LONG"],
        ["compare", "LONG"],
        ["report", "LONG"],
        ["train", "--config", "LONG"],
        ["generate", "hello", "--target", "./LONG"],
        ["generate", "hello", "--drafter", "LONG"],
        ["audit", "--json", "LONG"],
    ],
)
def test_names_that_no_file_can_have(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *(word.replace("LONG", "ü" * 200) for word in argv))
    assert (code, out) == (2, "")
    assert err.startswith("dspark: error: ")
    assert err.count("\n") == 1


def test_exit_codes_of_verbs_pass_through(capsys: pytest.CaptureFixture[str], verb: Any) -> None:
    import typer

    def command() -> None:
        raise typer.Exit(3)

    verb(command)
    assert run(capsys, "doctor")[0] == 3


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    code = (
        "from types import SimpleNamespace\n"
        "from dspark.cli import main as cli\n"
        "def command():\n"
        "    for i in range(100000): print(i)\n"
        "cli.import_module = lambda name: SimpleNamespace(command=command)\n"
        "raise SystemExit(cli.main(['doctor']))\n"
    )
    shell = f'"{sys.executable}" -c "$CODE" | head -1'
    done = subprocess.run(
        ["sh", "-c", shell],
        capture_output=True,
        text=True,
        env=os.environ | {"CODE": code},
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_doctor(
    capsys: pytest.CaptureFixture[str], tmp_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPARK_DATA", str(tmp_cache / "no"))
    code, out, _ = run(capsys, "doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["default_target"]["present"] is False
    assert facts["data"]["present"] is False
    assert facts["cache"]["folder"] == str(tmp_cache)
    assert facts["cache"]["writable"] is True
    assert facts["cpu"]["torch_threads"] >= 1
    assert "cpu" in facts["devices"]
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "dspark fetch smollm2-135m" in out


def test_doctor_shows_kept_targets(
    capsys: pytest.CaptureFixture[str], tmp_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspark.targets.target import load_target
    from fakes import tiny_target_folder

    folder = tiny_target_folder(tmp_cache / "target", layers=1)
    monkeypatch.setenv("DSPARK_KEPT_GIB", "0.5")
    load_target(folder, "float32")
    _, out, _ = run(capsys, "doctor", "--json")
    kept = json.loads(out)["kept_targets"]
    (target,) = kept["targets"]
    assert (target["target"], target["dtype"], target["usable"]) == (str(folder), "float32", True)
    assert kept["limit_gib"] == 0.5
    assert kept["mib"] == target["mib"] > 0
    _, out, _ = run(capsys, "doctor")
    assert str(folder) in out
    monkeypatch.setenv("DSPARK_KEPT_GIB", "much")
    code, _, err = run(capsys, "doctor")
    assert code == 2
    assert "DSPARK_KEPT_GIB" in err


def test_our_notes_are_no_errors() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dspark.cli.main", "doctor", "--json"],
        env=os.environ | {"PYTHONWARNINGS": "error", "DSPARK_KERNELS": "avx3"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("dspark: note: DSPARK_KERNELS=avx3 is no level")
    assert done.stderr.count("\n") == 1


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    shell = f'rmdir ../gone; exec "{sys.executable}" -m dspark.cli.main doctor'
    done = subprocess.run(
        ["sh", "-c", shell], cwd=tmp_path / "gone", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("dspark: error: The working folder is gone")
    assert done.stderr.count("\n") == 1
