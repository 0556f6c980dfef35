"""The clients of `dspark bench serve`: a process of their own, so that the server pays for none.

    python -m dspark.server.bench_clients

The first line of standard input says what to ask, see `Wish`. Every further line is answered with
one line: what has happened so far, see `Tally`. The end of the input ends the program. Standard
library alone: it starts at once, and takes as little as a client can from the processor that the
server runs on.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from time import process_time
from typing import TypedDict

PATH = "/v1/chat/completions"
_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_LAST = 2000  # bytes of an answer's end; its usage stands there


class Wish(TypedDict):
    """What to ask, and of whom.

    `users` connections each ask one of the `bodies` after the other, together round and round.
    """

    host: str
    port: int
    users: int
    bodies: list[str]


@dataclass(slots=True)
class Tally:
    """What the clients got so far.

    Attributes:
        answers, tokens: whole answers, and the tokens in them.
        failure: what went wrong first.
    """

    answers: int = 0
    tokens: int = 0
    failure: str | None = None


async def ask(host: str, port: int, body: str) -> int:
    """Read one streamed answer to its end.

    Returns:
        Its tokens.

    Raises:
        OSError: there is no connection.
        ValueError: it is no whole answer.
    """
    sent = body.encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(sent)}\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(head.encode() + sent)
        status = await reader.readline()
        end = b""
        while part := await reader.read(1 << 16):
            end = (end + part)[-_LAST:]
    finally:
        writer.close()
    tokens = _TOKENS.search(end)
    if b" 200 " not in status or b"data: [DONE]" not in end or tokens is None:
        raise ValueError(f"{status.decode().strip()} {end[-200:].decode(errors='replace')}")
    return int(tokens[1])


async def _user(wish: Wish, bodies: Iterator[str], tally: Tally) -> None:
    try:
        while True:
            tokens = await ask(wish["host"], wish["port"], next(bodies))
            tally.answers += 1
            tally.tokens += tokens
    except (OSError, ValueError) as error:
        tally.failure = tally.failure or f"{type(error).__name__}: {' '.join(str(error).split())}"


async def _run(wish: Wish) -> None:
    tally, over, loop = Tally(), asyncio.Event(), asyncio.get_running_loop()

    def tell() -> None:
        for _ in sys.stdin:
            print(json.dumps(asdict(tally) | {"cpu_s": process_time()}), flush=True)
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=tell, daemon=True).start()
    bodies = cycle(wish["bodies"])
    users = [asyncio.create_task(_user(wish, bodies, tally)) for _ in range(wish["users"])]
    await over.wait()
    for user in users:
        user.cancel()
    await asyncio.gather(*users, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(_run(json.loads(sys.stdin.readline())))
