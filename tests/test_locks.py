"""One process at a time adds to an output; whoever died holds nothing."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dspark import artifacts
from dspark.artifacts import locks
from dspark.errors import CheckpointError, DataError, InUseError

HOLD = """
import sys
from dspark import artifacts
with artifacts.hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds `path`."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def take(path: Path) -> None:
    with artifacts.hold(path):
        pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_second_process_hears_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "réponses.jsonl"
    with other(path) as child:
        with pytest.raises(InUseError) as caught:
            take(path)
        text = str(caught.value)
        assert f"process {child.pid} on {socket.gethostname()}, since 2" in text
        assert str(path) in text
        assert "\n" not in text
        assert names(path.parent) == [".réponses.jsonl.lock"]
        child.communicate("")  # it ends
    take(path)
    assert names(tmp_path) == []  # what was made for the lock alone is gone as well


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with other(tmp_path / "x") as child:
        child.kill()
        child.wait()
        assert names(tmp_path) == [".x.lock"]
        take(tmp_path / "x")
    assert names(tmp_path) == []


@pytest.mark.parametrize("rest", [b"", b"\xff\xfe", b"not a number\nhost\n", b"1"])
def test_whatever_a_lock_says(tmp_path: Path, rest: bytes) -> None:
    with other(tmp_path / "x"):
        (tmp_path / ".x.lock").write_bytes(rest)
        with pytest.raises(InUseError, match="another process"):
            take(tmp_path / "x")
    (tmp_path / ".x.lock").write_bytes(rest)
    take(tmp_path / "x")


def test_links_lead_to_one_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "file").symlink_to(tmp_path / "real" / "x")
    with other(tmp_path / "real" / "x"):
        for way in ("folder/x", "file"):
            with pytest.raises(InUseError):
                take(tmp_path / way)


def test_a_waiting_process_gets_its_turn(tmp_path: Path) -> None:
    said: list[str] = []
    with other(tmp_path / "x") as child:

        def on_wait(line: str) -> None:
            said.append(line)
            child.kill()

        with artifacts.hold(tmp_path / "x", on_wait=on_wait):
            assert child.wait() != 0
    assert len(said) == 1
    assert f"process {child.pid} on" in said[0]
    with (
        other(tmp_path / "x"),
        pytest.raises(InUseError),
        artifacts.hold(tmp_path / "x", on_wait=said.append, timeout_s=0.1),
    ):
        pass


def test_never_two_at_once(tmp_path: Path) -> None:
    """Also while locks are removed under the feet of those who wait for them."""
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with artifacts.hold(tmp_path / "x", on_wait=lambda line: None):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert names(tmp_path) == []


def test_an_error_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), artifacts.hold(tmp_path / "x"):
        raise ZeroDivisionError
    take(tmp_path / "x")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"cannot write .*file/x") as caught,
        artifacts.hold(tmp_path / "file" / "x", error=CheckpointError),
    ):
        pass
    assert not isinstance(caught.value, InUseError)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_file_systems_without_locks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", missing)
    with (
        artifacts.hold(tmp_path / "x"),
        pytest.raises(InUseError, match=f"process {os.getpid()} on"),
    ):
        take(tmp_path / "x")
    assert names(tmp_path) == []
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    (tmp_path / ".x.lock").write_text(f"{int(child.stdout)}\n{socket.gethostname()}\n")
    os.utime(tmp_path / ".x.lock", (0, 0))
    take(tmp_path / "x")


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no /dev/null here")
def test_devices_need_no_lock_and_stay_devices() -> None:
    before = Path("/dev/null").stat()
    with artifacts.hold("/dev/null"):
        artifacts.atomic_write_text("/dev/null", "nothing")
    after = Path("/dev/null").stat()
    assert (before.st_mode, before.st_ino) == (after.st_mode, after.st_ino)
    assert not locks.lock_path("/dev/null").exists()


def test_a_lock_is_no_part_of_what_it_lies_in(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("weights")
    with artifacts.hold(tmp_path / "calibration.json"):
        made = artifacts.provenance("dspark eval", inputs=[tmp_path])
        assert [Path(name).name for name in made["inputs"]] == ["model.safetensors"]


def test_a_pipe_takes_a_document(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE, text=True)
    artifacts.write_artifact(path, "dspark.demo/1", {"speedup": 2.0})
    assert '"speedup": 2.0' in reader.communicate(timeout=60)[0]
    assert path.is_fifo()


def test_a_link_to_a_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "here.json").symlink_to(tmp_path / "disk" / "there.json")
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    for text in ("one", "two"):
        artifacts.atomic_write_text(tmp_path / "here.json", text)
        with artifacts.atomic_folder(tmp_path / "run") as stage:
            (stage / "x").write_text(text)
    assert (tmp_path / "here.json").is_symlink()
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "disk" / "there.json").read_text() == "two"
    assert (tmp_path / "disk" / "run" / "x").read_text() == "two"
    assert names(tmp_path) == ["disk", "here.json", "run"]
    assert names(tmp_path / "disk") == ["run", "there.json"]


def test_a_full_device_is_worded() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(DataError, match="No space left"):
        artifacts.atomic_write_text("/dev/full", "text")
