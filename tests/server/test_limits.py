"""Keys, sizes, addresses that are not there, and the page's files."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dspark.errors import ConfigError
from dspark.server import page_files
from dspark.server.limits import ApiKeys, SizeLimits
from dspark.server.settings import Settings, read_api_keys
from serving import CHAT, chat, refused

KEYS = ("first-key", "schlüssel")


@pytest.fixture(scope="module")
def locked(make: Any) -> Iterator[TestClient]:
    with TestClient(make(api_keys=KEYS, cors_origins=("http://here",))) as client:
        yield client


def bearer(key: str) -> dict[str, bytes]:
    return {"Authorization": b"Bearer " + key.encode()}


# ---- keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_any_key_opens(locked: TestClient, key: str) -> None:
    assert locked.post(CHAT, json=chat(), headers=bearer(key)).status_code == 200
    assert locked.get("/metrics", headers=bearer(key)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic first-key"},
        {"Authorization": "first-key"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": b"Bearer \xff"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/stats", "/openapi.json", "/nowhere"])
def test_nothing_else_does(locked: TestClient, headers: Any, path: str) -> None:
    response = locked.get(path, headers=headers)
    error = refused(response, 401)
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert not any(key in response.text for key in KEYS)


def test_probes_and_the_page_need_no_key(locked: TestClient) -> None:
    assert locked.get("/health").json() == {"status": "ok"}
    assert locked.get("/ready").json() == {"status": "ready"}
    assert locked.get("/").status_code in (200, 404)
    refused(locked.get("/page/nothing"), 404)


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving the loop early would tell by time which key was near."""
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    reached = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def nothing(*_: Any) -> None:
        return None

    guard = ApiKeys(app, ["a", "b", "c"], ("/metrics",))
    for key in (b"a", b"c"):
        headers = [(b"authorization", b"Bearer " + key)]
        asyncio.run(guard({"type": "http", "path": "/x", "headers": headers}, nothing, nothing))
    assert len(compared) == 6
    assert reached == ["/x", "/x"]
    assert len({len(digest) for digest in compared}) == 1


def test_open_metrics(make: Any) -> None:
    with TestClient(make(api_keys=KEYS, open_metrics=True)) as client:
        assert client.get("/metrics").status_code == 200
        refused(client.get("/stats"), 401)


def test_keys_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSPARK_API_KEYS", raising=False)
    assert read_api_keys(None) == ()
    file = tmp_path / "keys"
    file.write_text("# ours\n one \n\ntwo\none\n")
    monkeypatch.setenv("DSPARK_API_KEYS", "three, one,")
    assert read_api_keys(file) == ("three", "one", "two")
    assert "one" not in repr(Settings(model="m", api_keys=("one",)))
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="has no key"):
        read_api_keys(file)
    with pytest.raises(ConfigError, match="Cannot read"):
        read_api_keys(tmp_path / "missing")


# ---- other origins --------------------------------------------------------------------------


def test_other_origins_are_refused_unless_named(client: TestClient, locked: TestClient) -> None:
    ask = {"Origin": "http://here", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options(CHAT, headers=ask).headers
    answer = client.post(CHAT, json=chat(), headers={"Origin": "http://here"})
    assert "access-control-allow-origin" not in answer.headers
    allowed = locked.options(CHAT, headers=ask)
    assert allowed.headers["access-control-allow-origin"] == "http://here"
    elsewhere = locked.options(CHAT, headers=ask | {"Origin": "http://there"})
    assert "access-control-allow-origin" not in elsewhere.headers


# ---- sizes ----------------------------------------------------------------------------------


def test_a_body_that_is_too_large(client: TestClient) -> None:
    """Whether it says so itself or comes in pieces."""
    large = chat("ox " * 7000)
    assert refused(client.post(CHAT, json=large), 413)["code"] == "request_too_large"

    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    assert refused(client.post(CHAT, content=pieces()), 413)["code"] == "request_too_large"


def run_limit(messages: list[dict[str, Any]], **limits: Any) -> tuple[list[Any], list[Any]]:
    """What an app behind the limit receives, and what it would have sent."""
    seen: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive(), await receive()])

    async def receive() -> Any:
        if not messages:
            await asyncio.sleep(60)
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [], "path": "/", "query_string": b""}
    asyncio.run(SizeLimits(app, **limits)(scope, receive, send))
    return seen, sent


def test_a_body_in_pieces_arrives_whole_and_the_end_behind_it() -> None:
    part = {"type": "http.request", "body": b"ab", "more_body": True}
    end = {"type": "http.request", "body": b"c"}
    gone = {"type": "http.disconnect"}
    seen, sent = run_limit([part, part, end, gone], most=5)
    assert seen == [{"type": "http.request", "body": b"ababc", "more_body": False}, gone]
    assert sent == []
    seen, sent = run_limit([part, part, end], most=4)
    assert (seen, sent[0]["status"]) == ([], 413)
    assert run_limit([part, gone], most=9) == ([], [])


def test_a_body_that_never_ends() -> None:
    part = {"type": "http.request", "body": b"ab", "more_body": True}
    seen, sent = run_limit([part], most=9, seconds=0.01)
    assert (seen, sent[0]["status"]) == ([], 408)


# ---- addresses ------------------------------------------------------------------------------


def test_addresses_that_are_not_there(client: TestClient) -> None:
    for path in ("/nowhere", "/v1", "/docs", "/redoc", CHAT + "/"):
        refused(client.get(path), 404)
    refused(client.get(CHAT), 405)
    refused(client.delete("/health"), 405)


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2fapp.py", "../app.py", "%2e%2e/app.py", "%00", "/etc/passwd", "app.py"],
)
def test_no_path_leads_to_the_file_system(client: TestClient, name: str) -> None:
    refused(client.get("/page/" + name), 404)


def test_the_page_is_served_from_a_table(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page"
    page.mkdir()
    monkeypatch.setattr(page_files.resources, "files", lambda package: tmp_path)
    assert page_files.load_page() == {}
    with TestClient(make()) as client:
        refused(client.get("/"), 404)
    (page / "index.html").write_text("<p>hello")
    (page / "page.js").write_text("1;")
    (page / "notes.txt").write_text("not for others")
    with TestClient(make()) as client:
        (page / "late.js").write_text("2;")
        assert client.get("/").text == "<p>hello"
        script = client.get("/page/page.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert "default-src 'self'" in script.headers["content-security-policy"]
        for name in ("notes.txt", "late.js", "index.htm"):
            refused(client.get(f"/page/{name}"), 404)


def test_nothing_secret_in_headers(client: TestClient) -> None:
    headers = client.post(CHAT, json=chat()).headers
    assert headers.keys() <= {"content-length", "content-type"}
