"""Work shared out among threads: all of it once, whoever is busy, in a child process too."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any

import pytest

from dspark.native import build

WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_long, ctypes.c_long)

pytestmark = pytest.mark.skipif(build.library() is None, reason="no C++ compiler on this machine")


def run(threads: int, count: int, grain: int) -> list[tuple[int, int]]:
    """The ranges that a job was shared out in."""
    library: Any = build.library()
    library.dspark_parallel.argtypes = [
        ctypes.c_int,
        ctypes.c_long,
        ctypes.c_long,
        WORK,
        ctypes.c_void_p,
    ]
    ranges: list[tuple[int, int]] = []
    library.dspark_parallel(
        threads, count, grain, WORK(lambda _, begin, end: ranges.append((begin, end))), None
    )
    return ranges


def whole(ranges: list[tuple[int, int]], count: int, grain: int) -> bool:
    """Whether ranges make up 0 to count - 1, each once, in whole grains."""
    ends = [0]
    for begin, end in sorted(ranges):
        if begin != ends[-1] or end <= begin or (begin % grain and end != count):
            return False
        ends.append(end)
    return ends[-1] == count


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_all_work_is_done_once(threads: int) -> None:
    for count in (1, 2, 7, 36, 100, 1001):
        for grain in (1, 3, 4):
            assert whole(run(threads, count, grain), count, grain), (count, grain)


def test_two_callers_at_once() -> None:
    """The second one does its work by itself."""
    fine: list[bool] = []

    def many() -> None:
        fine.extend(whole(run(3, 50, 2), 50, 2) for _ in range(300))

    callers = [threading.Thread(target=many) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(fine) == 1200
    assert all(fine)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_process_has_threads_of_its_own() -> None:
    run(3, 50, 1)
    child = os.fork()
    if child == 0:
        os._exit(0 if whole(run(3, 50, 1), 50, 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert whole(run(3, 50, 1), 50, 1)
