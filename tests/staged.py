"""An engine whose steps a test holds back and makes fail, and readers of its streams."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from dspark.core import Request, SamplingParams, StepOutput
from dspark.engine.engine import Engine
from dspark.engine.stream import Stream
from scripted import TableTarget, answer

TABLE = TableTarget()
PARAMS = SamplingParams(max_new_tokens=20)
A, B, C, D = [1, 2], [3], [4, 4, 1], [5, 6]


class StagedEngine(Engine):
    """An engine whose steps a test holds back and makes fail.

    Attributes:
        permits: one is taken by each step; None lets all pass.
        fault: is told before each step who runs, and may raise.
        requests: all that were put in line.
    """

    def __init__(self, slots: int = 2, permits: int | None = None) -> None:
        super().__init__(TABLE, slots=slots, max_len=60)
        self.permits = None if permits is None else threading.Semaphore(permits)
        self.fault: Callable[[Sequence[Request]], None] = lambda running: None
        self.requests: list[Request] = []

    def submit_request(self, request: Request) -> None:
        self.requests.append(request)
        super().submit_request(request)

    def step(self) -> list[StepOutput]:
        assert threading.current_thread().name == "dspark-engine"
        assert self.queue, "a step without work: the thread should sleep"
        if self.permits is not None:
            assert self.permits.acquire(timeout=300)
        self.queue.next_batch()  # admits, as the failing step would have
        self.fault([request for request in self.requests if request.slot is not None])
        return super().step()

    def allow(self, steps: int = 10_000) -> None:
        assert self.permits is not None
        self.permits.release(steps)

    def is_free(self) -> bool:
        return not self.queue and len(self.queue.slots) == self.queue.slots.size


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """What `main` returns; a test that hangs fails."""
    return asyncio.run(asyncio.wait_for(main, 300))


def plain(*prompts: list[int], params: SamplingParams = PARAMS) -> list[list[int]]:
    return answer(TABLE, None, prompts, params, max_len=60)


async def read(stream: Stream) -> list[int]:
    """All tokens of a stream, which ends with its one finished output."""
    outputs = [output async for output in stream]
    assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]
    tokens = [token for output in outputs for token in output.token_ids]
    assert tokens == outputs[-1].request.output_ids
    return tokens
