"""The server at length: a thousand streaming clients that are killed."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import time
from collections import Counter
from copy import copy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from dspark.artifacts import provenance, write_artifact
from dspark.core import Batch, Request
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.server.completion import Completion
from dspark.targets.target import Target
from scripted import whole_blocks
from serving import CHAT, Live, content, different_chats, listening, soon, streamed

pytestmark = pytest.mark.soak

KILLS = int(os.environ.get("DSPARK_SOAK_KILLS", "1000"))
KILLERS, SLOTS = 16, 4
RESULTS = Path(__file__).parents[2] / "results"


@dataclass
class Killed:
    """Clients that were killed, and where the engine had their requests then.

    Attributes:
        in_prompt: seeds of the requests whose prompts are in the works, by which clients know
            their own.
    """

    clients: int = 0
    in_prompt: set[int | None] = field(default_factory=set)
    survivors: int = 0
    different: list[str] = field(default_factory=list)
    where: Counter[str] = field(default_factory=Counter)


def small_engine(target: Target, drafter: Drafter, killed: Killed) -> Engine:
    """An engine with few slots, a cache too small for them, and prompts that take several steps.

    It notes whose prompt is in the works, and the state of every request that is cancelled.
    """
    endless = copy(target)
    endless.stop_ids = frozenset()
    position = Engine(endless, drafter, whole_blocks(drafter)).runner.position_bytes
    engine = Engine(
        endless,
        drafter,
        slots=SLOTS,
        max_len=128,
        cache_gib=0.4 * SLOTS * 128 * position / 2**30,
        prefill_rows=3,
    )
    end, next_batch = engine.cancel, engine.queue.next_batch

    def cancel(request: Request) -> None:
        stage = "queue" if request.slot is None else "answer" if request.output_ids else "prompt"
        killed.where[stage] += request.finish is None
        end(request)

    def noted_batch() -> Batch:
        batch = next_batch()
        fresh = (chunk.request for chunk in batch.prefill if not chunk.request.output_ids)
        killed.in_prompt = {request.params.seed for request in fresh}
        return batch

    engine.cancel, engine.queue.next_batch = cancel, noted_batch  # type: ignore[method-assign]
    return engine


def test_a_thousand_killed_clients(make: Any, target: Target, drafter: Drafter) -> None:
    """In line, during the prompt and during the answer: all places come back."""
    killed = Killed()
    engine = small_engine(target, drafter, killed)
    bodies = different_chats(12, (5, 12))
    start = time.monotonic()
    with listening(make(engine, grace_s=0.0)) as live:
        ask = lambda body: content(httpx.post(live.url + CHAT, json=body, timeout=60))  # noqa: E731
        alone = [ask(body) for body in bodies]
        asyncio.run(slaughter(live, bodies, alone, killed))
        outer = live.service.engine
        assert soon(lambda: outer.running == outer.waiting == 0, 60)
        assert soon(lambda: not live.server.server_state.tasks)
        gc.collect()
        left = sum(type(thing) is Completion for thing in gc.get_objects())
        free, held = len(engine.queue.slots), engine.queue.held
        afterwards = [ask(body) for body in bodies]
    facts = {
        "kills": killed.clients,
        "where": dict(killed.where),
        "at_once": KILLERS,
        "slots": SLOTS,
        "free_slots": free,
        "positions_held": held,
        "survivors": killed.survivors,
        "different": killed.different[:10],
        "preemptions": engine.queue.preemptions,
        "seconds": round(time.monotonic() - start, 1),
    }
    record = provenance("make soak", {"seed": 0}, [])
    write_artifact(RESULTS / "soak_kills.json", "dspark.soak_kills/1", facts, record)
    assert killed.clients == KILLS
    assert (free, held, left) == (SLOTS, 0, 0)
    assert not engine.queue
    assert not killed.different
    assert afterwards == alone
    assert min(killed.where[stage] for stage in ("queue", "prompt", "answer")) >= KILLS // 20
    assert engine.queue.preemptions > 0


async def slaughter(
    live: Live, bodies: list[dict[str, Any]], alone: list[str], killed: Killed
) -> None:
    """Many clients at once; a few read to the end, and their texts are compared."""
    numbers = count()

    async def client() -> None:
        while killed.clients < KILLS:
            number = next(numbers)
            draw = random.Random(number)
            which = draw.randrange(len(bodies))
            if draw.random() < 0.1:
                async with httpx.AsyncClient(timeout=60, verify=False) as whole:
                    text, _ = await streamed(whole, live.url, bodies[which])
                killed.survivors += 1
                if text != alone[which]:
                    killed.different.append(text)
            else:
                killed.clients += 1
                await kill(live.url, bodies[which] | {"seed": number}, draw, killed)

    await asyncio.gather(*(client() for _ in range(KILLERS)))


async def kill(url: str, body: dict[str, Any], draw: random.Random, killed: Killed) -> None:
    """A client that dies at some event; the first one comes at once, before the prompt."""
    host, _, port = url.removeprefix("http://").partition(":")
    sent = json.dumps(body | {"stream": True}).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
    events = draw.choice([0, 1, 1, 1, 2, 3, 5, 8])
    to_prompt = events == 1 and draw.random() < 0.5
    while events and (line := await reader.readline()):
        events -= line.startswith(b"data: ")
    end = time.monotonic() + 20
    while to_prompt and body["seed"] not in killed.in_prompt and time.monotonic() < end:
        await asyncio.sleep(0.001)
    writer.transport.abort()
