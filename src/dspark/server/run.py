"""Runs the app under uvicorn: sockets, readiness, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from dspark.errors import ConfigError
from dspark.server.limits import MAX_HEADERS
from dspark.server.service import Service

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_WORDS_S = 5  # for final events to reach their clients after the engine has stopped


def bind(host: str, port: int) -> socket.socket:
    """Take an address without listening on it yet, so that a port in use is heard of at once.

    Args:
        port: 0 takes a free one.

    Raises:
        ConfigError: the address cannot be taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"There is no address {host}", found=error.strerror) from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise ConfigError(
            f"Cannot listen on {host} port {port}",
            found=error.strerror,
            fix="Stop what uses it, or choose another --port",
        ) from error
    return taken


def url_of(listening: socket.socket) -> str:
    """Where a browser finds a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Uvicorn, but when it is told to stop, answers under way end with a proper last event.

    Args:
        app: of `create_app`.
        on_ready: called when requests are accepted.
    """

    def __init__(self, app: FastAPI, on_ready: Callable[[], None] = lambda: None) -> None:
        self._service: Service = app.state.service
        self._on_ready = on_ready
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEADERS,
            timeout_graceful_shutdown=int(self._service.settings.grace_s) + _LAST_WORDS_S,
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        with _loaded_set_aside():
            super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopped = asyncio.create_task(self._service.stop())
        await super().shutdown(sockets)
        await self._service.engine.stop()  # no grace is left, or none is needed
        await stopped

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Uvicorn's own raises the signal again afterwards; an orderly end is no failure.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _loaded_set_aside() -> Iterator[None]:
    """Keep the garbage collector off all that is loaded by now.

    Every so many requests it walks through everything, and modules and models are nearly all of
    that: a quarter of a second in which no request gets a token.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
