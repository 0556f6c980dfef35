"""The server at length: many streaming clients for minutes, and a thousand that are killed."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dspark.artifacts import provenance, write_artifact
from dspark.core import Batch, Request
from dspark.engine.engine import Engine
from dspark.models.default_target import DEFAULT_TARGET, shipped_drafter
from dspark.models.drafter import Drafter
from dspark.models.target import Target
from dspark.server.completion import Completion
from serving import CHAT, Live, chat, listening, soon

psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("DSPARK_SOAK_SECONDS", "600"))
KILLS = int(os.environ.get("DSPARK_SOAK_KILLS", "1000"))
CLIENTS, SAMPLE_S = 64, 5.0
LEAST_S = 300  # a shorter run is all warm-up: caches fill, and each new number of rows costs memory
KILLERS, SLOTS = 16, 4
RUNNING = "num_requests_running"
RESULTS = Path(__file__).parents[2] / "results"
WORDS = """
river stone candle winter letter garden engine silver bridge morning paper window salt forest music
number harbour copper question island thread basket thunder kitchen mirror planet ladder honey
market shadow orange feather valley button story glass hammer spring ocean ticket write explain
list compare describe the a of and with without why how under between
"""


def requests(how_many: int, words: tuple[int, int], **fields: Any) -> list[dict[str, Any]]:
    """Bodies that are all different, greedy, made of words drawn at random."""
    draw, known = random.Random(0), WORDS.split()
    texts = [" ".join(draw.choices(known, k=draw.randint(*words))) for _ in range(how_many)]
    assert len(set(texts)) == how_many
    return [chat(text, max_tokens=draw.randint(24, 48), **fields) for text in texts]


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


# ---- many clients -------------------------------------------------------------------------------


@pytest.fixture
def server(default_target: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`dspark serve` with the default target and drafter in float32, and its address."""
    line = ["--dtype", "float32", "--policy", "fixed:4", "--port", "0", "--max-len", "256"]
    command = [sys.executable, "-m", "dspark.cli.main", "serve", "--slots", str(CLIENTS), *line]
    log = tmp_path / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("serving "), log.read_text()
            yield process, first.split(" at ")[1].split(";")[0]
        finally:
            process.kill()


@dataclass
class Heard:
    """What the clients and the watch of the server found."""

    requests: int = 0
    tokens: int = 0
    different: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    most_running: int = 0
    rss_mib: list[tuple[float, float]] = field(default_factory=list)


def test_many_clients_for_long(server: tuple[subprocess.Popen[str], str]) -> None:
    """No error, no leak, and nobody's text depends on who else is there."""
    process, url = server
    bodies = requests(CLIENTS, (4, 40), model=DEFAULT_TARGET)
    alone = [content(httpx.post(url + CHAT, json=body, timeout=120)) for body in bodies]
    heard = Heard()
    start = time.monotonic()
    asyncio.run(crowd(process.pid, url, bodies, alone, heard))
    seconds = time.monotonic() - start
    figures = scraped(url)
    growth, warm = growth_of(heard.rss_mib)
    facts = {
        "target": DEFAULT_TARGET,
        "clients": CLIENTS,
        "seconds": round(seconds, 1),
        "requests": heard.requests,
        "equal_texts": heard.requests - len(heard.different),
        "different": heard.different[:10],
        "errors": heard.errors[:10],
        "tokens": heard.tokens,
        "tokens_per_s": round(heard.tokens / seconds, 1),
        "most_running": heard.most_running,
        "accepted_length": round(accepted_length(figures), 4),
        "rss_mib": heard.rss_mib,
        "growth_mib": round(growth, 1),
    }
    folder = shipped_drafter(DEFAULT_TARGET, "dspark")
    record = provenance("make soak", {"seed": 0}, [folder] if folder else [])
    write_artifact(RESULTS / "soak_server.json", "dspark.soak_server/1", facts, record)
    assert not heard.errors
    assert not heard.different
    assert heard.requests >= CLIENTS
    assert heard.most_running > CLIENTS // 2
    if SECONDS >= LEAST_S:
        assert growth < max(50, 0.03 * warm), f"memory grew by {growth:.0f} MiB"
    assert figures[RUNNING] == figures["num_requests_waiting"] == 0
    assert figures["engine_healthy"] == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


async def crowd(
    pid: int, url: str, bodies: list[dict[str, Any]], alone: list[str], heard: Heard
) -> None:
    """All clients at once until the time is over; meanwhile the server is watched."""
    end = time.monotonic() + SECONDS
    watching = asyncio.create_task(watch(pid, url, heard))
    try:
        await asyncio.gather(*(talk(i, url, bodies, alone, end, heard) for i in range(CLIENTS)))
    finally:
        watching.cancel()


async def talk(
    number: int,
    url: str,
    bodies: list[dict[str, Any]],
    alone: list[str],
    end: float,
    heard: Heard,
) -> None:
    """One client: its own request first, then all of them in an order of its own."""
    order = random.Random(number).sample(range(len(bodies)), len(bodies))
    order.remove(number)
    async with httpx.AsyncClient(timeout=300, verify=False) as client:
        for which in cycle([number, *order]):
            try:
                text, tokens = await streamed(client, url, bodies[which])
            except (httpx.HTTPError, AssertionError, ValueError) as error:
                heard.errors.append(f"request {which}: {type(error).__name__}: {error}")
                return
            heard.requests += 1
            heard.tokens += tokens
            if text != alone[which]:
                asked = bodies[which]["messages"][0]["content"]
                heard.different.append({"asked": asked, "alone": alone[which], "in_company": text})
            if time.monotonic() >= end:
                return


async def streamed(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> tuple[str, int]:
    """Text and tokens of a streamed answer."""
    wish = body | {"stream": True, "stream_options": {"include_usage": True}}
    parts: list[str] = []
    tokens, last = 0, ""
    async with client.stream("POST", url + CHAT, json=wish) as answer:
        assert answer.status_code == 200, (await answer.aread()).decode()
        async for line in answer.aiter_lines():
            assert not line.startswith("event: error"), parts
            last = line.removeprefix("data: ") or last
            if line and last != "[DONE]":
                chunk = json.loads(last)
                parts += [choice["delta"].get("content", "") for choice in chunk["choices"]]
                tokens = (chunk["usage"] or {}).get("completion_tokens", 0)
    assert last == "[DONE]", parts
    return "".join(parts), tokens


async def watch(pid: int, url: str, heard: Heard) -> None:
    """Note the server's memory and what it says of itself, now and again."""
    process, start = psutil.Process(pid), time.monotonic()
    async with httpx.AsyncClient(timeout=60, verify=False) as client:
        while True:
            await asyncio.sleep(min(SAMPLE_S, SECONDS / 24))
            running = int(figures_of((await client.get(url + "/metrics")).text)[RUNNING])
            heard.most_running = max(heard.most_running, running)
            rss = process.memory_info().rss / 2**20
            heard.rss_mib.append((round(time.monotonic() - start, 1), round(rss, 1)))


def growth_of(rss_mib: list[tuple[float, float]]) -> tuple[float, float]:
    """MiB from the end of the warm-up, a third of the time, to the end; and MiB at its end.

    Medians over a sixth of the time each, so that no single sample decides.
    """
    sizes = [size for _, size in rss_mib]
    part = max(len(sizes) // 6, 1)
    warm = statistics.median(sizes[2 * part : 3 * part])
    return statistics.median(sizes[-part:]) - warm, warm


def figures_of(text: str) -> dict[str, float]:
    """Metrics without labels, by name without prefix."""
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    return {s.name.removeprefix("dspark:"): s.value for s in samples if not s.labels}


def scraped(url: str) -> dict[str, float]:
    """The server's metrics once nothing runs any more."""
    ask = lambda: figures_of(httpx.get(url + "/metrics", timeout=60).text)  # noqa: E731
    soon(lambda: ask()[RUNNING] == 0)
    return ask()


def accepted_length(figures: dict[str, float]) -> float:
    """Tokens a round, the target's own included, over all that the server has answered."""
    accepted, drafts = "spec_decode_num_accepted_tokens_total", "spec_decode_num_drafts_total"
    return 1 + figures[accepted] / figures[drafts]


# ---- killed clients -----------------------------------------------------------------------------


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
    position = Engine(endless, drafter).runner.position_bytes
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
    bodies = requests(12, (5, 12))
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
