"""The files of the page, read once: names come from the package, never from a request."""

from __future__ import annotations

from importlib import resources

from starlette.responses import Response

INDEX = "index.html"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def load_page() -> dict[str, Response]:
    """Ready answers by file name; empty where the package has no page."""
    folder = resources.files("dspark.server") / "page"
    if not folder.is_dir():
        return {}
    found = {}
    for file in folder.iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            headers = {**_HEADERS, "Content-Type": kind}
            found[file.name] = Response(file.read_bytes(), headers=headers)
    return found
