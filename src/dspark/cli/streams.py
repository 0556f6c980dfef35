"""Standard input, output and error that may be closed, full or gone."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from dspark.errors import DataError, DSparkError


class ReaderGone(Exception):
    """Whoever read standard output went away, as `head` does; there is nobody left to tell.

    No BrokenPipeError: the libraries in between have ideas of their own about that.
    """


class _Raw(io.FileIO):
    """A stream's bytes; once it failed, what is left in buffers on top of it is dropped."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.lost = False

    def write(self, data: Any) -> int:
        try:
            return len(data) if self.lost else super().write(data)
        except OSError as error:
            self.lost = True
            self.fail(error)
            return len(data)

    def fail(self, error: OSError) -> None:
        """Something was not taken."""
        raise error


class _Output(_Raw):
    """Standard output: what it does not take ends the verb, now or after its other results.

    Args:
        go_on: says whether there are such; their work must not be lost.
    """

    def __init__(self, number: int, go_on: Callable[[], bool]) -> None:
        super().__init__(number)
        self.go_on = go_on
        self.failure: Exception | None = None

    def fail(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            self.failure = ReaderGone()
        else:
            self.failure = DataError(
                "cannot write standard output",
                found=error.strerror,
                fix="Free some disk space or send it elsewhere",
            )
        if not self.go_on():
            raise self.failure


class _Remarks(_Raw):
    """Standard error: bars and remarks that nobody can see are no reason to end hours of work."""

    def fail(self, error: OSError) -> None:
        return


@contextmanager
def standard_streams(go_on: Callable[[], bool]) -> Iterator[Callable[[], None]]:
    """The process's own streams made to fail as above; replaced ones, as in tests, stay.

    Those that are closed lead nowhere: a file that is opened later must not get their number, and
    what is meant for standard error must not end up in standard output.

    Args:
        go_on: whether a verb goes on when standard output fails.

    Yields:
        What raises that failure at the end of the verb: ReaderGone or DataError.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    before, output = (sys.stdout, sys.stderr), _Output(1, go_on)

    def check() -> None:
        sys.stdout.flush()
        if output.failure is not None:
            raise output.failure

    try:
        if sys.stdout is sys.__stdout__:
            sys.stdout = _over(output, before[0])
        if sys.stderr is sys.__stderr__:
            sys.stderr = _over(_Remarks(2), before[1])
        yield check
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(DSparkError, ReaderGone):  # an error on its way says more
                stream.flush()
        sys.stdout, sys.stderr = before  # with nothing left in their buffers


def _over(raw: _Raw, like: TextIO | None) -> TextIO:
    """A text stream that writes as `like` does, if there is one."""
    buffered = io.BufferedWriter(raw)
    if not isinstance(like, io.TextIOWrapper):
        return io.TextIOWrapper(buffered, "utf-8", "backslashreplace")
    like.flush()
    return io.TextIOWrapper(
        buffered,
        like.encoding,
        # What an encoding lacks is spelled as an escape; nobody's answer ends at an emoji.
        "backslashreplace" if like.errors == "strict" else like.errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )
