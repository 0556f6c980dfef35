"""Signals that ask a process to stop: Ctrl-C, SIGTERM and SIGHUP, all treated alike.

Only the standard library; whoever imports this changes nothing yet.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Handler = Callable[[int, Any], None]

# Those that end a process at once unless someone catches them. Windows has no SIGHUP.
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_came: list[int] = []


def _stop(number: int, _: Any) -> None:
    _came.append(number)
    raise KeyboardInterrupt


def exit_code() -> int:
    """What a process that was asked to stop exits with: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (_came[-1] if _came else signal.SIGINT)


@contextmanager
def stop_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt inside the block, as Ctrl-C does.

    A signal that is ignored (`nohup`) or handled already stays as it is.
    """
    _came.clear()
    ours = [n for n in _ENDING if _in_main() and signal.getsignal(n) is signal.SIG_DFL]
    with _handled(ours, _stop):
        yield


@contextmanager
def hold_interrupt() -> Iterator[None]:
    """Let a signal wait for the end of the block, so that no step is half done; a second does not.

    Does nothing outside the main thread or for signals that have another meaning.
    """
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        _came.append(number)
        if came:
            raise KeyboardInterrupt
        came.append(number)

    with _handled(_ours(), note):
        yield
    if came:
        raise KeyboardInterrupt


@contextmanager
def note_interrupts() -> Iterator[list[bool]]:
    """Only note signals, however often they come, so that several processes can stop together.

    Yields:
        a list that is empty as long as nothing came.
    """
    came: list[bool] = []

    def note(number: int, _: Any) -> None:
        _came.append(number)
        came.append(True)

    with _handled(_ours(), note):
        yield came


def _in_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _ours() -> list[int]:
    """Signals that would raise KeyboardInterrupt here."""
    if not _in_main():
        return []
    known = (signal.default_int_handler, _stop)
    return [n for n in (signal.SIGINT, *_ENDING) if signal.getsignal(n) in known]


@contextmanager
def _handled(numbers: list[int], handler: Handler) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
