"""What stands before the endpoints: API keys, sizes, slow senders."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection, Iterable
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dspark.server.errors import ApiError

BODY_S = 30.0  # for a client to send its whole body
MAX_HEADERS = 16 << 10  # bytes of request line and headers


class ApiKeys:
    """Lets requests pass that carry `Authorization: Bearer KEY` with a known key.

    Args:
        app: what is behind.
        keys: any of them will do.
        open_paths: need no key; one that ends in / stands for all below it.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], open_paths: Collection[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open = frozenset(path for path in open_paths if path == "/" or path[-1] != "/")
        self._below = tuple(path for path in open_paths if path != "/" and path[-1] == "/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._passes(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "An API key is needed: send it as Authorization: Bearer KEY",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _passes(self, scope: Scope) -> bool:
        path = scope["path"]
        if path in self._open or path.startswith(self._below):
            return True
        given = next((v for name, v in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        # Digests have one length, and every key is compared: time tells nothing of any of them.
        digest = _digest(key.strip())
        fits = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(fits)


class SizeLimits:
    """Takes a request's whole body in, up to a size and within a time, before the app sees it.

    Args:
        app: what is behind.
        most: bytes of the body; address and headers have a limit of their own.
        seconds: for the body to arrive.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float = BODY_S) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            error = ApiError(408, "The body took too long to arrive", code="timeout")
            await error.response()(scope, receive, send)
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is not None:  # else the client is gone
            await self._app(scope, _replayed(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None when the client went away.

        Raises:
            ApiError: 413 or 431.
        """
        head = [scope["path"].encode(), scope["query_string"], *sum(scope["headers"], ())]
        if sum(map(len, head)) > MAX_HEADERS:
            raise ApiError(431, f"Address and headers are longer than {MAX_HEADERS} bytes")
        length = next((v for name, v in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length[:20]) > self._most:
            raise self._too_large()
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        text = f"The body is larger than this server takes, {self._most} bytes"
        return ApiError(413, text, code="request_too_large", headers={"Connection": "close"})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """First the body, then what really arrives."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
