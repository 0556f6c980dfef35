"""A stand-in for the server behind the playground page, out of the standard library alone.

It sends the page's files and scripted answers, so that every kind of token and of failure comes
when a test wants it.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "src" / "dspark" / "server" / "page"
MARKUP = "<img src=x onerror=alert(1)>"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
TYPES[".svg"] = "image/svg+xml"


def chunk(*tokens: tuple[str, str], round: dict[str, Any] | None = None) -> dict[str, Any]:
    """One event of an answer: (text, kind) of its tokens, and their round."""
    return {
        "choices": [{"index": 0, "delta": {"content": "".join(text for text, _ in tokens)}}],
        "dspark": {"tokens": [{"text": t, "kind": kind} for t, kind in tokens], "round": round},
    }


FIRST_ROUND = {"drafted": 4, "verified": 3, "accepted": 1, "confidence": [0.9, 0.31, 0.2, 0.1]}
SPECULATIVE = {"drafted": 4, "verified": 3, "accepted": 1, "accepted_length": 2.0}
ANSWER = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    chunk(("The", "plain")),
    chunk((" sky", "accepted"), (MARKUP, "drawn"), round=FIRST_ROUND),
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"completion_tokens": 3, "speculative": SPECULATIVE}},
]
TEXT = f"The sky{MARKUP}"


class StandIn(ThreadingHTTPServer):
    """Answers "endless" until the client leaves, "broken" with an error, all else with ANSWER."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []  # bodies of chat requests
        self.polls = 0  # of /stats
        self.left = threading.Event()  # the client of an endless answer is gone
        self.away = False  # answers nothing at all
        self.key: str | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        if self.path == "/" or self.path.startswith("/page/"):
            self.send_file(PAGE / (self.path.removeprefix("/page/").strip("/") or "index.html"))
        elif self.server.away:
            self.close_connection = True
        elif self.path != "/ready" and not self.has_key():
            self.send_json({"error": {"message": "A key is needed"}}, 401)
        elif self.path == "/stats":
            self.server.polls += 1
            self.send_json({"points": points(self.server.polls)})
        else:
            self.send_json({"data": [{"id": "stand-in"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.send("text/event-stream")
        prompt = body["messages"][-1]["content"]
        if prompt == "endless":
            self.send_endlessly()
        elif prompt == "broken":
            self.send_event(chunk(("Half", "plain")))
            self.send_event({"error": {"message": "The engine could not answer"}})
        else:
            for event in ANSWER:
                self.send_event(event)
        if prompt != "endless":
            self.wfile.write(b"data: [DONE]\n\n")

    def send_endlessly(self) -> None:
        try:
            while True:
                self.send_event(chunk((" on", "plain")))
                time.sleep(0.05)
        except OSError:
            self.server.left.set()

    def has_key(self) -> bool:
        key = self.server.key
        return key is None or self.headers["Authorization"] == f"Bearer {key}"

    def send_event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def send_json(self, content: dict[str, Any], status: int = 200) -> None:
        self.send("application/json", status)
        self.wfile.write(json.dumps(content).encode())

    def send_file(self, path: Path) -> None:
        self.send(TYPES[path.suffix])
        self.wfile.write(path.read_bytes())

    def send(self, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", "default-src 'self'")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests' output is for tests."""


def points(polls: int) -> list[dict[str, Any]]:
    """Two minutes of statistics that change with every poll."""
    return [
        {
            "t": polls + second,
            "tokens_per_s": 40 + (polls + second) % 17,
            "running": (polls + second) % 5,
            "waiting": second % 2,
            "mean_verify_len": 3.5 if second % 20 else None,
            "batch_tokens": 12.5 if second % 20 else None,
            "accept_by_position": [0.93, 0.71, 0.4, None],
            "drafted": 40,
            "verified": 30,
            "accepted": 20,
        }
        for second in range(120)
    ]
