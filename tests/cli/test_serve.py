"""`dspark serve`: a whole process that answers and stops in order, and what it refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from dspark.artifacts import cache_dir
from dspark.cli import main as cli
from tiny import tiny_drafter, tiny_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = tiny_home(tmp_path_factory.mktemp("home"), count=6)
    tiny_drafter(home, steps=1)
    return home


def line(home: Path, *more: str) -> list[str]:
    models = ["--target", str(home / "target"), "--drafter", str(home / "run" / "drafter")]
    return ["serve", *models, "--dtype", "float32", "--port", "0", *more]


@pytest.fixture
def server(home: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running process and its address."""
    if (cache_dir() / "native").is_dir():  # compiled already
        (tmp_path / "native").symlink_to(cache_dir().absolute() / "native")
    env = os.environ | {"DSPARK_CACHE": str(tmp_path), "DSPARK_API_KEYS": "sesame"}
    command = [sys.executable, "-m", "dspark.cli.main", *line(home)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("serving target at http://127.0.0.1:"), first
        assert process.stdout.readline().startswith("curl http://127.0.0.1:")
        yield process, first.split(" at ")[1].split(";")[0]
        process.kill()


def test_a_process_that_answers_and_stops_in_order(
    server: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, url = server
    body = {"model": "target", "messages": [{"role": "user", "content": "zebras"}]}
    headers = {"Authorization": "Bearer sesame"}
    answer = httpx.post(url + "/v1/chat/completions", json=body, headers=headers, timeout=300)
    assert answer.json()["usage"]["speculative"].keys() >= {"drafted", "accepted"}
    assert list(tmp_path.glob("cost/*.json")), "it measures before it is ready"
    assert httpx.get(url + "/v1/models", timeout=300).status_code == 401
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "prompt tokens" in errors
    for secret in ("zebras", "sesame", "Traceback"):
        assert secret not in errors


def test_a_port_in_use(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main([*line(home), "--port", str(port)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"dspark: error: Cannot listen on 127.0.0.1 port {port} (found: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--policy", "causal"], "Measure it with `dspark profile`"),
        (["--policy", "often"], "Unknown policy"),
        (["--recalibrate", "--policy", "fixed:2"], "Recalibration is for the policies"),
        (["--api-key-file", "missing.txt"], "Cannot read the key file missing.txt"),
        (["--slots", "0"], "--slots"),
        (["--port", "70000"], "--port"),
    ],
)
def test_refusals(
    home: Path,
    argv: list[str],
    words: str,
    tmp_cache: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(line(home, *argv)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("dspark: ")


def test_without_its_packages(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dspark.server.run", None)
    assert cli.main(line(home)) == 2
    assert "pip install 'dspark[serve]'" in capfd.readouterr().err
