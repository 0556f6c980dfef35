"""Texts from the command line and standard input, which may be in any encoding."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from dspark.artifacts import bad_byte
from dspark.errors import ConfigError


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that no result file could hold, before anything is done with them.

    Raises:
        ConfigError: one is not UTF-8, with its place.
    """
    for number, argument in enumerate(arguments, start=1):
        decoded(os.fsencode(argument), f"Argument {number}", "utf-8")


def given_text(argument: str) -> str:
    """What an argument says; `-` stands for all of standard input.

    Raises:
        ConfigError: it cannot be read as text, with the place.
    """
    if argument != "-":  # a locale without UTF-8 gives its bytes one by one
        return decoded(os.fsencode(argument), "The prompt", "utf-8")
    stream = sys.stdin
    if stream is None:
        raise ConfigError(
            "Standard input is closed", fix="Pipe the prompt in, or give it as an argument"
        )
    if not isinstance(stream, io.TextIOWrapper):
        return stream.read()
    # Plain ASCII is what a locale falls back to, not what anybody asks for.
    ascii_only = stream.encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968", "646")
    encoding = "utf-8" if ascii_only else stream.encoding
    text = decoded(stream.buffer.read(), "Standard input", encoding)
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def decoded(data: bytes, what: str, encoding: str) -> str:
    """Bytes as text.

    Raises:
        ConfigError: they are in another encoding, with line and byte.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{what} is not {encoding.upper()}",
            found=bad_byte(error),
            fix=f"Give it in {encoding.upper()}",
        ) from error
