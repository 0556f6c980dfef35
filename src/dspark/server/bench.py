"""What HTTP costs: the same engine behind the server and without it, in turns within one run.

Both ways have an engine of their own and as many users, each with one request at a time. An
engine steps only in its turn and stands still otherwise, requests under way included, so drift of
the machine's speed falls on both alike. Bare users read the engine's streams on the event loop;
served ones are a process of their own (`bench_clients`).

Suffixes: B resamples, P pairs of turns.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter, process_time
from typing import Any

import numpy as np

from dspark.core import SamplingParams, StepOutput
from dspark.engine.async_engine import AsyncEngine
from dspark.engine.engine import Engine
from dspark.errors import ConfigError, EngineError
from dspark.maths.bootstrap import Floats, ratio, resample_counts
from dspark.maths.summary import rounded, rounded_interval
from dspark.server import bench_clients
from dspark.server.app import create_app
from dspark.server.bench_clients import Wish
from dspark.server.run import Server, bind, url_of
from dspark.server.settings import Settings
from dspark.tables.calibration import CalibrationTable

SCHEMA = "dspark.serve_overhead/1"
HOST = "127.0.0.1"
START_S = 60.0  # for the server to accept requests
SETTLE_S = 0.05  # between turns, for what the last step said to reach its readers

Message = dict[str, str]
OnTurn = Callable[[int, int], None]  # pairs of turns done, of how many


@dataclass(frozen=True, slots=True)
class Load:
    """What both ways are asked.

    Attributes:
        users: each has one request at a time; the engines have as many slots.
        max_new_tokens: longest answer.
        seconds: of each way, after one turn to warm up.
        slice_s: seconds of a turn.
        seed: of the order of the prompts, which is the same for both.
    """

    users: int
    max_new_tokens: int
    seconds: float
    slice_s: float = 1.0
    seed: int = 0

    @property
    def pairs(self) -> int:
        """Turns of each way."""
        return 1 + max(round(self.seconds / self.slice_s), 2)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one way did in one turn.

    Attributes:
        seconds, tokens, steps: of the engine.
        cpu_s: of this process, all threads.
        client_cpu_s: of the clients' process.
    """

    seconds: float
    tokens: int
    steps: int
    cpu_s: float
    client_cpu_s: float


class TurnEngine(Engine):
    """An engine whose steps wait for its turn; arguments as for `Engine`."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self._changed = threading.Condition()
        self._in_turn = self._stepping = False
        super().__init__(*args, **more)

    def begin(self) -> None:
        """Let it step, until `pause`."""
        with self._changed:
            self._in_turn = True
            self._changed.notify_all()

    def pause(self) -> None:
        """End its turn; returns when the step under way is done."""
        with self._changed:
            self._in_turn = False
            self._changed.wait_for(lambda: not self._stepping)

    def step(self) -> list[StepOutput]:
        with self._changed:
            self._changed.wait_for(lambda: self._in_turn)
            self._stepping = True
        try:
            return super().step()
        finally:
            with self._changed:
                self._stepping = False
                self._changed.notify_all()


def run(
    bare: TurnEngine,
    served: TurnEngine,
    conversations: Sequence[list[Message]],
    load: Load,
    calibration: CalibrationTable | None = None,
    on_turn: OnTurn = lambda done, all_: None,
) -> dict[str, Any]:
    """Both ways in turn, greedy.

    Args:
        bare, served: two engines of the same kind.
        conversations: asked round and round.
        calibration: the drafter's table, for the server's drift metrics.

    Returns:
        Fields of schema dspark.serve_overhead/1.

    Raises:
        RequestError: a conversation leaves no room to answer.
        EngineError: the server did not answer.
    """
    asked = random.Random(load.seed).sample(list(conversations), len(conversations))
    ids = [bare.target.encode_messages(messages) for messages in asked]
    settings = Settings(model="bench", max_queue=load.users, timeout_s=86_400.0, grace_s=0.0)
    wish = Wish(
        host=HOST,
        port=0,
        users=load.users,
        bodies=[_body(settings.model, messages, load.max_new_tokens) for messages in asked],
    )
    with (
        _serving(served, settings, calibration) as wish["port"],
        _clients(wish) as clients,
    ):
        turns = asyncio.run(_take_turns(bare, served, clients, ids, load, on_turn))
        answers = clients.tally()["answers"]
    return {"answers": answers, **figures([b for b, _ in turns], [s for _, s in turns])}


async def _take_turns(
    bare: TurnEngine,
    served: TurnEngine,
    clients: Clients,
    ids: Sequence[list[int]],
    load: Load,
    on_turn: OnTurn,
) -> list[tuple[Turn, Turn]]:
    """Pairs of turns, bare and served; the first pair, which warms up, is left out."""
    found: list[tuple[Turn, Turn]] = []
    params, prompts = SamplingParams(max_new_tokens=load.max_new_tokens), cycle(ids)
    async with AsyncEngine(bare, max_waiting=load.users) as outer:
        readers = [asyncio.create_task(_read(outer, prompts, params)) for _ in range(load.users)]
        try:
            for pair in range(load.pairs):
                both: dict[TurnEngine, Turn] = {}
                for engine in (bare, served) if pair % 2 else (served, bare):
                    both[engine] = await _turn(engine, clients, load.slice_s)
                found.append((both[bare], both[served]))
                on_turn(pair + 1, load.pairs)
                for reader in readers:
                    if reader.done():
                        reader.result()  # readers end by errors alone
        finally:
            bare.begin()  # while it waits for its turn it cannot stop
            for reader in readers:
                reader.cancel()
    return found[1:]


async def _read(outer: AsyncEngine, prompts: Iterator[list[int]], params: SamplingParams) -> None:
    while True:
        async for _ in outer.stream(next(prompts), params):
            pass


async def _turn(engine: TurnEngine, clients: Clients, seconds: float) -> Turn:
    await asyncio.sleep(SETTLE_S)
    client_cpu = await asyncio.to_thread(clients.cpu_s)
    stats = engine.stats
    tokens, steps = stats.committed, stats.steps
    cpu, start = process_time(), perf_counter()
    engine.begin()
    await asyncio.sleep(seconds)
    await asyncio.to_thread(engine.pause)
    spent, cpu = perf_counter() - start, process_time() - cpu
    client_cpu = await asyncio.to_thread(clients.cpu_s) - client_cpu
    return Turn(spent, stats.committed - tokens, stats.steps - steps, cpu, client_cpu)


# ---- figures ------------------------------------------------------------------------------------


def figures(bare: Sequence[Turn], served: Sequence[Turn]) -> dict[str, Any]:
    """What turns of both ways, in pairs, say: fields of schema dspark.serve_overhead/1.

    Raises:
        ConfigError: there are no tokens to compare.
    """
    if not (_total(bare, "tokens") and _total(served, "tokens")):
        raise ConfigError("No token came in the time given", fix="Give more --seconds")
    counts_BP = resample_counts(len(bare))
    overhead_B = 1 - ratio(_speeds(served, counts_BP), _speeds(bare, counts_BP))
    every = np.ones((1, len(bare)))
    overhead = 1 - ratio(_speeds(served, every), _speeds(bare, every))
    return {
        "overhead": rounded(float(overhead[0])),
        "overhead_ci": rounded_interval(overhead_B),
        "client_cpu_share": rounded(_total(served, "client_cpu_s") / _total(served, "seconds")),
        "bare": _way(bare),
        "served": _way(served),
    }


def _speeds(turns: Sequence[Turn], counts_BP: Floats) -> Floats:
    """Tokens a second of each resample of the turns, [B]."""
    tokens, seconds = ([getattr(turn, name) for turn in turns] for name in ("tokens", "seconds"))
    speeds_B: Floats = ratio(counts_BP @ np.array(tokens, float), counts_BP @ np.array(seconds))
    return speeds_B


def _way(turns: Sequence[Turn]) -> dict[str, Any]:
    tokens = _total(turns, "tokens")
    return {
        "tokens_per_s": rounded(tokens / _total(turns, "seconds")),
        "tokens_per_step": rounded(tokens / _total(turns, "steps")),
        "cpu_ms_per_token": rounded(1000 * _total(turns, "cpu_s") / tokens),
        "slices": [{"tokens": turn.tokens, "seconds": round(turn.seconds, 5)} for turn in turns],
    }


def _total(turns: Sequence[Turn], name: str) -> float:
    return float(sum(getattr(turn, name) for turn in turns))


# ---- server and clients -------------------------------------------------------------------------


@contextmanager
def _serving(
    engine: TurnEngine, settings: Settings, calibration: CalibrationTable | None
) -> Iterator[int]:
    """The server, on a thread, at a free port."""
    ready = threading.Event()
    server = Server(create_app(engine, settings, calibration), ready.set)
    with bind(HOST, 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            if not ready.wait(START_S):
                raise EngineError("The server did not start", found=url_of(listening))
            yield listening.getsockname()[1]
        finally:
            engine.begin()  # while it waits for its turn it cannot stop
            server.should_exit = True
            thread.join()


class Clients:
    """The process of the HTTP clients."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def say(self, line: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def tally(self) -> dict[str, Any]:
        """What they got so far: `bench_clients.Tally` and `cpu_s`.

        Raises:
            EngineError: one of them did not get what it asked for.
        """
        assert self._process.stdout is not None
        try:
            self.say("")
            tally: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise EngineError("The clients' process has ended") from error
        if tally["failure"]:
            raise EngineError("A client was not answered", found=tally["failure"])
        return tally

    def cpu_s(self) -> float:
        """Processor seconds that they took so far; errors as for `tally`."""
        return float(self.tally()["cpu_s"])


@contextmanager
def _clients(wish: Wish) -> Iterator[Clients]:
    """The clients' process, which asks from now on."""
    command = [sys.executable, "-m", bench_clients.__name__]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    try:
        clients = Clients(process)
        clients.say(json.dumps(wish))
        yield clients
    finally:
        process.kill()
        process.communicate()


def _body(model: str, messages: list[Message], max_new_tokens: int) -> str:
    return json.dumps(
        {
            "model": model,
            "messages": messages,
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
