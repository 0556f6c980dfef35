"""Bodies of requests as JSON, read strictly: what one reader takes otherwise than another is none.

Python's reader passes NaN and Infinity, keeps the last of two values with one key, and reads texts
nested so deeply that others, which call themselves for each level, run out of stack.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from dspark.artifacts import bad_byte
from dspark.server.errors import Unreadable
from dspark.server.fields import IGNORE_UNKNOWN

MOST_LEVELS = 100  # of lists and objects inside each other


def parse(body: bytes) -> Any:
    """The value that a body holds.

    Raises:
        JSONDecodeError: it is no JSON.
        Unreadable: it is no UTF-8; others may read it otherwise, or not at all.
    """
    try:
        value = json.loads(
            body.decode("utf-8-sig"), object_pairs_hook=_distinct, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise Unreadable(f"The body is not UTF-8: {bad_byte(error)}") from error
    except RecursionError:
        raise _too_deep() from None
    if body.count(b"[") + body.count(b"{") > MOST_LEVELS:
        _check_levels(value)
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)[:100]
        raise Unreadable(f"The body has the key {twice!r} twice in one object", twice)
    return found


def _no_constant(name: str) -> None:
    raise Unreadable(f"The body is not JSON, which has no {name}")


def _check_levels(value: Any) -> None:
    layer = [value]
    for _ in range(MOST_LEVELS):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return
    raise _too_deep()


def _too_deep() -> Unreadable:
    return Unreadable(f"The body has more than {MOST_LEVELS} lists and objects inside each other")


class _StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_value"):
            self._value = parse(await self.body())
        return self._value


def route_class(ignore_unknown: bool) -> type[APIRoute]:
    """Routes whose bodies are read strictly.

    Args:
        ignore_unknown: fields that nobody knows are passed over.
    """

    class BodyRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                before = IGNORE_UNKNOWN.set(ignore_unknown)
                try:
                    return await handle(_StrictRequest(request.scope, request.receive))
                finally:
                    IGNORE_UNKNOWN.reset(before)

            return answer

    return BodyRoute
