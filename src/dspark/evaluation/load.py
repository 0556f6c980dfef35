"""Policies under load: many users at once, policies in turn within one run (DSpark §5).

Every policy has a lane: an engine of its own and a clock that runs only while the engine steps. The
lanes take turns in slices of a second or so, so drift of the machine's speed falls on all alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from dspark.core import Request, SamplingParams
from dspark.engine import stats
from dspark.engine.engine import Engine
from dspark.maths.bootstrap import interval, ratio, resample_counts

SCHEMA = "dspark.load/1"
_ONE_STEP = 1e-9  # seconds of a turn that is as short as can be


@dataclass(slots=True)
class Slice:
    """One turn of a lane."""

    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0


@dataclass(slots=True)
class Watched:
    """A request and the lane's clock at its arrival, first token and end."""

    request: Request
    arrived: float
    first: float | None = None
    ended: float | None = None


class Lane:
    """One policy's engine under load.

    Args:
        engine: with as many slots as there are users.
        prompts: token ids, asked round and round in a shuffled order of the lane's own.
        params: how to draw.
        users: requests kept running (closed loop); or
        rate: arrivals a second of the lane's clock, Poisson (open loop).
        seed: of order and arrivals; the same for all lanes, so all see the same load.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        users: int = 0,
        rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        assert bool(users) != bool(rate)
        self.engine, self.params, self.users = engine, params, users
        self.clock = 0.0
        self.slices: list[Slice] = []
        self.watched: list[Watched] = []
        self._running: dict[int, Watched] = {}
        self._order = _round_and_round(prompts, random.Random(f"{seed}/order"))
        self._warm = 0  # requests that came before the lane was warm
        self._cut = random.Random(f"{seed}/cut")
        self._arrivals = _poisson(rate, random.Random(f"{seed}/arrivals")) if rate else None
        self._next = next(self._arrivals) if self._arrivals else 0.0

    def warm_up(self, seconds: float) -> None:
        """A turn that counts for nothing, on until every user of a closed loop hears something.

        The first answers are cut at random lengths, so that users are out of step from then on.
        """
        self.turn(seconds)
        while any(watched.first is None for watched in self.watched[: self.users]):
            self.turn(_ONE_STEP)
        self.slices.clear()
        self._warm = len(self.watched)

    def turn(self, seconds: float) -> None:
        """Step the engine until its clock has gone on by ``seconds``."""
        part = Slice()
        while part.seconds < seconds:
            self._submit()
            busy, start = bool(self.engine.queue), perf_counter()
            outputs = self.engine.step()
            spent = perf_counter() - start
            if not busy:  # nobody is there: time passes until the next arrival
                spent = max(self._next - self.clock, 0.0)
            self.clock += spent
            part.seconds += spent
            part.steps += busy
            for output in outputs:
                part.tokens += len(output.token_ids)
                self._note(output.request, output.finished)
        self.slices.append(part)

    def _submit(self) -> None:
        if self._arrivals is None:
            while len(self._running) < self.users:
                self._arrive(self.clock)
            return
        while self._next <= self.clock:
            self._arrive(self._next)
            self._next = next(self._arrivals)

    def _arrive(self, at: float) -> None:
        params = self.params
        if len(self.watched) < self.users:
            params = replace(params, max_new_tokens=self._cut.randint(2, params.max_new_tokens))
        request = self.engine.submit(next(self._order), params)
        watched = Watched(request, at)
        self._running[request.id] = watched
        self.watched.append(watched)

    def _note(self, request: Request, finished: bool) -> None:
        watched = self._running[request.id]
        if watched.first is None:
            watched.first = self.clock
        if finished:
            watched.ended = self.clock
            del self._running[request.id]

    def row(self) -> dict[str, Any]:
        """Fields of a row of schema dspark.load/1, of all turns since the lane is warm."""
        parts = self.slices
        tokens, seconds = [p.tokens for p in parts], [p.seconds for p in parts]
        counts_BP = resample_counts(len(parts))
        resampled = ratio(counts_BP @ np.array(tokens, float), counts_BP @ np.array(seconds))
        requests = [w.request for w in self.watched]
        whole = [w for w in self.watched if w.ended is not None and w.first is not None]
        speeds = [
            (len(w.request.output_ids) - 1) / (w.ended - w.first)  # type: ignore[operator]
            for w in whole
            if len(w.request.output_ids) > 1
        ]
        later = self.watched[self._warm :] or self.watched  # the first ones all came at once
        waits = [w.first - w.arrived for w in later if w.first is not None]
        times = self.engine.stats
        verified, rounds = stats.verified_tokens(requests), sum(len(r.rounds) for r in requests)
        return {
            "policy": self.engine.policy.name,
            "users": self.users,
            "tokens_per_s": _round(sum(tokens) / sum(seconds)),
            "tokens_per_s_ci": [_round(end) for end in interval(resampled) or ()],
            **_percentiles("tokens_per_s_per_user", speeds),
            **_percentiles("ttft", waits),
            "requests": len(whole),
            "accepted_length": _round(stats.accepted_length(requests)),
            "mean_verify_len": _round(verified / rounds) if rounds else None,
            "wasted_share": _round(stats.wasted_tokens(requests) / verified) if verified else None,
            "steps": sum(p.steps for p in parts),
            "schedule_share": _round(times.schedule_s / times.seconds),
            "draft_share": _round(times.draft_s / times.seconds),
            "slices": [{"tokens": p.tokens, "seconds": round(p.seconds, 5)} for p in parts],
        }


@dataclass(frozen=True, slots=True)
class Load:
    """One level of load: users of a closed loop, or arrivals a second."""

    users: int = 0
    rate: float = 0.0

    @property
    def slots(self) -> int:
        """Requests that may run at a time; arrivals beyond wait in line."""
        return self.users or OPEN_SLOTS


OPEN_SLOTS = 64
Way = TypeVar("Way")
OnSlice = Callable[[Load, int, int], None]


def run(
    build: Callable[[Way, int], Engine],
    ways: Sequence[Way],
    levels: Sequence[Load],
    prompts: Sequence[list[int]],
    params: SamplingParams,
    *,
    seconds: float,
    slice_s: float = 1.0,
    seed: int = 0,
    on_slice: OnSlice = lambda level, done, all_: None,
) -> list[dict[str, Any]]:
    """Every way to serve at every level of load.

    Args:
        build: makes an engine that serves one way, with so many slots.
        ways: usually policies.
        seconds: of each way at each level, after warming up.
        slice_s: seconds of a turn.

    Returns:
        Rows of schema dspark.load/1, level by level, in each the ways in their order.
    """
    rows = []
    turns = max(round(seconds / slice_s), 1)
    for level in levels:
        lanes = [
            Lane(
                build(way, level.slots),
                prompts,
                params,
                users=level.users,
                rate=level.rate,
                seed=seed,
            )
            for way in ways
        ]
        for lane in lanes:
            lane.warm_up(slice_s)
        for turn in range(turns):
            first = turn % len(lanes)  # no policy always follows the same other one
            for lane in lanes[first:] + lanes[:first]:
                lane.turn(slice_s)
            on_slice(level, turn + 1, turns)
        rows += [lane.row() | {"rate": level.rate} for lane in lanes]
    return rows


def _round_and_round(prompts: Sequence[list[int]], draw: random.Random) -> Iterator[list[int]]:
    while True:
        yield from draw.sample(list(prompts), len(prompts))


def _poisson(rate: float, draw: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += draw.expovariate(rate)
        yield at


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {f"{name}_p50": None, f"{name}_p95": None}
    middle, high = np.percentile(values, [50, 95])
    return {f"{name}_p50": _round(middle), f"{name}_p95": _round(high)}


def _round(value: float) -> float:
    return round(float(value), 4)
