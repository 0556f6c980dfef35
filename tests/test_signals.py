"""SIGTERM and SIGHUP stop as Ctrl-C does, and the exit code tells which came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from dspark import signals
from dspark.signals import hold_interrupt, note_interrupts, stop_like_ctrl_c

NAMES = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.fixture(autouse=True)
def as_at_start() -> Iterator[None]:
    """A shell may have started the tests with signals ignored."""
    wanted = {getattr(signal, name): signal.SIG_DFL for name in NAMES}
    wanted[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    assert {number: signal.getsignal(number) for number in wanted} == wanted
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_ctrl_c_with_a_code_of_its_own(name: str) -> None:
    number = getattr(signal, name)
    with pytest.raises(KeyboardInterrupt), stop_like_ctrl_c():
        signal.raise_signal(number)
    assert signals.exit_code() == 128 + number


def held(numbers: list[int], done: list[str]) -> None:
    with hold_interrupt():
        for number in numbers:
            signal.raise_signal(number)
        done.append("whole")


@pytest.mark.parametrize("name", NAMES)
def test_a_block_is_held_whole(name: str) -> None:
    done: list[str] = []
    with stop_like_ctrl_c():
        with pytest.raises(KeyboardInterrupt):
            held([getattr(signal, name)], done)
        with note_interrupts() as came:
            signal.raise_signal(getattr(signal, name))
    assert done == ["whole"]
    assert came == [True]
    assert signals.exit_code() == 128 + getattr(signal, name)


def test_the_second_of_two_kinds_does_not_wait() -> None:
    done: list[str] = []
    with stop_like_ctrl_c(), pytest.raises(KeyboardInterrupt):
        held([signal.SIGTERM, signal.SIGINT], done)
    assert not done


def test_other_meanings_stay() -> None:
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    with stop_like_ctrl_c(), hold_interrupt():
        signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_other_threads_touch_no_signal() -> None:
    failed = []

    def work() -> None:
        try:
            with stop_like_ctrl_c(), hold_interrupt(), note_interrupts():
                pass
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ignored", [False, True])
def test_verbs(name: str, ignored: bool) -> None:
    """An ignored SIGINT, as in a script's background, does not make a process deaf to SIGTERM."""
    if ignored and name == "SIGINT":
        pytest.skip("ignored")
    code = (
        "import time\n"
        "from types import SimpleNamespace\n"
        "from dspark.cli import main as cli\n"
        "def command():\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(60)\n"
        "cli.import_module = lambda name: SimpleNamespace(command=command)\n"
        "raise SystemExit(cli.main(['doctor']))\n"
    )
    meaning = signal.SIG_IGN if ignored else signal.default_int_handler
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, meaning),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    child.send_signal(getattr(signal, name))
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + getattr(signal, name)
    assert err == "dspark: interrupted; finished work is kept\n"
