"""The server at length: many streaming clients for minutes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dspark.artifacts import provenance, write_artifact
from dspark.drafters.shipped import shipped_drafter
from dspark.fetching.known import DEFAULT_TARGET
from serving import CHAT, content, different_chats, soon, streamed

psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("DSPARK_SOAK_SECONDS", "600"))
CLIENTS, SAMPLE_S = 64, 5.0
LEAST_S = 300  # a shorter run is all warm-up: caches fill, and each new number of rows costs memory
RUNNING = "num_requests_running"
RESULTS = Path(__file__).parents[2] / "results"


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
    bodies = different_chats(CLIENTS, (4, 40), model=DEFAULT_TARGET)
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
    """MiB from the end of the warm-up, half of the time, to the end; and MiB at its end.

    Medians over a sixth of the time each, so that no single sample decides. Caches fill with the
    number of answers: after a third of the time a slow machine had made 420 and was still filling.
    """
    sizes = [size for _, size in rss_mib]
    part = max(len(sizes) // 6, 1)
    warm = statistics.median(sizes[3 * part : 4 * part])
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
