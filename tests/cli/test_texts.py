"""Texts in any encoding: read, or refused in one line with the place."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dspark.cli import main as cli
from dspark.cli.texts import given_text
from dspark.errors import ConfigError


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes, encoding: str = "utf-8") -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding))


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        ("café 😀 e\u0301\n".encode(), "utf-8", "café 😀 e\u0301\n"),
        (b"\xef\xbb\xbfhi", "utf-8", "hi"),
        (b"a\r\nb\rc\n", "utf-8", "a\nb\nc\n"),
        (b"a\x00b", "utf-8", "a\x00b"),
        (b"", "utf-8", ""),
        ("café".encode(), "ascii", "café"),  # what a locale falls back to
        (b"caf\xe9", "latin-1", "café"),  # what somebody asks for
    ],
)
def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, data: bytes, encoding: str, text: str
) -> None:
    stdin(monkeypatch, data, encoding)
    assert given_text("-") == text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"caf\xe9", "Standard input is not UTF-8 .found: byte 0xe9 at line 1, byte 4"),
        (b"one\ntwo \xff", "byte 0xff at line 2, byte 5"),
        ("hi".encode("utf-16"), "UTF-16, by its first bytes"),
        ("x\ud83d".encode(errors="surrogatepass"), "byte 0xed at line 1, byte 2"),
    ],
)
def test_standard_input_that_is_no_text(
    monkeypatch: pytest.MonkeyPatch, data: bytes, words: str
) -> None:
    stdin(monkeypatch, data)
    with pytest.raises(ConfigError, match=words):
        given_text("-")


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="Standard input is closed"):
        given_text("-")


@pytest.mark.parametrize(
    "argv", [["generate", "caf\udce9"], ["report", "caf\udce9.json"], ["generate", "-"]]
)
def test_every_verb_refuses_bytes_that_are_no_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    """In one line, and before a model is looked for."""
    stdin(monkeypatch, b"caf\xe9")
    code = cli.main(argv)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert "byte 0xe9 at line 1, byte 4" in err
    assert err.count("\n") == 1


def test_arguments_of_a_locale_without_utf8() -> None:
    text = "naïve 😀"
    assert given_text(text.encode().decode("ascii", "surrogateescape")) == text


@pytest.mark.parametrize("how", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}])
def test_output_that_an_encoding_lacks(how: dict[str, str]) -> None:
    """The characters are spelled as escapes, and the verb goes on."""
    code = (
        "from dspark.cli import main as cli, doctor; import sys\n"
        "def command(): print('café 😀')\n"
        "doctor.command = command\n"
        "sys.exit(cli.main(['doctor']))"
    )
    source = str(Path(cli.__file__).parents[2])
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": source, **how}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\\U0001f600\n")
