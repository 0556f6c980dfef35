"""llama.cpp as a peer: a stand-in for its bindings, a small server, and GGUF files."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest

from dspark.core import SamplingParams
from dspark.errors import ConfigError, DataError
from dspark.evaluation import llama_cpp
from scripted import TableTarget

PARAMS = SamplingParams(max_new_tokens=4)
STOP = 6


@pytest.fixture(scope="module")
def target() -> TableTarget:
    return TableTarget(stop_ids=[STOP])


def write_gguf(path: Path, layers: int = 6, hidden: int = 16) -> Path:
    """A GGUF file with the facts of a model and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_embedding_length(hidden)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ---- files --------------------------------------------------------------------------------------


def test_a_file_of_the_target(target: TableTarget, tmp_path: Path) -> None:
    assert llama_cpp.check_gguf(write_gguf(tmp_path / "m.gguf"), target) == "Q8_0"


def test_another_model_is_refused(target: TableTarget, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", layers=7)
    with pytest.raises(DataError, match="7 layers of 16, the target has 6 of 16"):
        llama_cpp.check_gguf(file, target)


@pytest.mark.parametrize("content", [None, b"", b"GG", b"not a model at all" * 9, b"GGUF\3\0\0\0"])
def test_what_is_no_gguf_file(target: TableTarget, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "m.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*m\.gguf as a GGUF file") as caught:
        llama_cpp.bindings(file, target, 64, 1)
    assert "\n" not in str(caught.value)


# ---- bindings -----------------------------------------------------------------------------------


def test_bindings_that_are_not_installed(
    target: TableTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for file in (None, write_gguf(tmp_path / "m.gguf")):
        peer = llama_cpp.bindings(file, target, 64, 1)
        assert peer.missing == "llama-cpp-python is not installed"


class FakeLlama:
    """Says 3, 4, 5, … for ever; a prompt that was not forgotten is an error."""

    made: dict[str, Any]

    def __init__(self, model_path: str, **options: Any) -> None:
        FakeLlama.made = {"model_path": model_path, **options}
        self.used = False

    def reset(self) -> None:
        self.used = False

    def generate(self, tokens: list[int], **options: Any) -> Iterator[int]:
        assert not self.used
        assert options == {"temp": 0.0, "repeat_penalty": 1.0}
        self.used = True
        yield from range(tokens[-1], 100)


def test_bindings(target: TableTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(Llama=FakeLlama, __version__="0.3")
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    assert "--gguf" in (llama_cpp.bindings(None, target, 64, 1).missing or "")
    peer = llama_cpp.bindings(write_gguf(tmp_path / "m.gguf"), target, 64, 3)
    made = FakeLlama.made
    assert (made["n_ctx"], made["n_threads"], made["n_threads_batch"]) == (64, 3, 3)
    assert (peer.name, peer.version) == ("llama-cpp-python", "0.3")
    assert peer.note == "llama-cpp-python: m.gguf, Q8_0"
    assert peer.ask is not None
    assert peer.ask([1, 0], PARAMS).request.output_ids == [0, 1, 2, 3]  # as long as it may be
    assert peer.ask([1, 4], PARAMS).request.output_ids == [4, 5, STOP]


def test_a_file_the_bindings_cannot_load(
    target: TableTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("unknown\nversion")

    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=refuse))
    with pytest.raises(DataError, match=r"cannot load .*unknown version"):
        llama_cpp.bindings(write_gguf(tmp_path / "m.gguf"), target, 64, 1)


# ---- server -------------------------------------------------------------------------------------


class Replies(BaseHTTPRequestHandler):
    """Answers with what stands in `replies` by path, and keeps what it was asked."""

    replies: dict[str, Any]
    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        found = self.replies.get(self.path)
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(200 if found is not None else 404)
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(json.loads(body))
        self.do_GET()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def replies() -> Iterator[tuple[str, type[Replies]]]:
    """Address and handler of a server on this machine."""
    kind = type("Mine", (Replies,), {"replies": {}, "asked": []})
    with HTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", kind
        server.shutdown()
        thread.join()


def test_server(replies: tuple[str, type[Replies]]) -> None:
    url, kind = replies
    kind.replies["/props"] = {"build_info": "b123", "model_path": "/a/b/m.gguf"}
    kind.replies["/completion"] = {"tokens": [3, 4, 5], "content": "x"}
    peer = llama_cpp.server(f"{url}/")
    assert (peer.missing, peer.version, peer.note) == (None, "b123", "llama-server: m.gguf")
    assert peer.ask is not None
    given = peer.ask([1, 2], PARAMS)
    assert given.request.output_ids == [3, 4, 5]
    assert given.seconds > 0
    (asked,) = kind.asked
    assert asked["prompt"] == [1, 2]
    assert (asked["n_predict"], asked["temperature"], asked["cache_prompt"]) == (4, 0, False)


@pytest.mark.parametrize("reply", [{}, {"tokens": []}, {"tokens": ["x"]}, {"tokens": 7}])
def test_a_server_without_token_ids(replies: tuple[str, type[Replies]], reply: Any) -> None:
    url, kind = replies
    kind.replies |= {"/props": {}, "/completion": reply}
    peer = llama_cpp.server(url)
    assert peer.ask is not None
    with pytest.raises(DataError, match="gave no token ids"):
        peer.ask([1, 2], PARAMS)


@pytest.mark.parametrize("props", [None, b"<html>", [1]])
def test_something_else_at_the_address_is_missing(
    replies: tuple[str, type[Replies]], props: Any
) -> None:
    url, kind = replies
    kind.replies["/props"] = props
    assert f"{url} does not answer" in (llama_cpp.server(url).missing or "")


def test_a_server_that_is_not_there() -> None:
    assert "no server was given" in (llama_cpp.server(None).missing or "")
    with HTTPServer(("127.0.0.1", 0), Replies) as server:
        port = server.server_port
    missing = llama_cpp.server(f"http://127.0.0.1:{port}").missing or ""
    assert "does not answer" in missing
    assert "\n" not in missing


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "file:///etc/passwd", "http://", "http://["])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="address is not valid"):
        llama_cpp.server(url)
