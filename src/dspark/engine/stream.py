"""From the engine's thread to callers on their event loops: what each request gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from dspark.core import Request, StepOutput
from dspark.errors import DSparkError


class Ticket:
    """A request and where its events go: outputs, or the error that ends it."""

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request, self.loop = request, loop
        self.events: asyncio.Queue[StepOutput | DSparkError] = asyncio.Queue()

    def put(self, event: StepOutput | DSparkError) -> bool:
        """Hand over an event from any thread; False when the caller's loop is closed."""
        return _wake(self.loop, partial(self.events.put_nowait, event))


def put_all(outputs: Sequence[tuple[Ticket, StepOutput]]) -> list[Ticket]:
    """Hand over a step's outputs from any thread, waking each event loop once.

    Returns:
        The tickets whose loops are closed.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, StepOutput]]] = {}
    for ticket, output in outputs:
        by_loop.setdefault(ticket.loop, []).append((ticket, output))
    lost: list[Ticket] = []
    for loop, its_own in by_loop.items():
        if not _wake(loop, partial(_put_here, its_own)):
            lost += [ticket for ticket, _ in its_own]
    return lost


def _put_here(outputs: Sequence[tuple[Ticket, StepOutput]]) -> None:
    for ticket, output in outputs:
        ticket.events.put_nowait(output)


def _wake(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> bool:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # it is closed
        return False
    return True


class Stream(AsyncIterator[StepOutput]):
    """What one request gets, step by step, up to an output that is `finished`.

    The request is cancelled when its reader is cancelled while it waits, by `aclose`, and when
    nobody holds the stream any longer, as after a `break` out of `async for`. Read it on the
    event loop that made it.
    """

    _over = False

    def __init__(self, ticket: Ticket, leave: Callable[[], None]) -> None:
        self._ticket, self._leave = ticket, leave

    async def __anext__(self) -> StepOutput:
        if self._over:
            raise StopAsyncIteration
        try:
            event = await self._ticket.events.get()
        except asyncio.CancelledError:
            self._cancel()
            raise
        if isinstance(event, DSparkError):
            self._over = True
            raise event
        self._over = self._over or event.finished
        return event

    async def aclose(self) -> None:
        """Cancel the request, which the engine does before its next step."""
        self._cancel()

    # An async generator would not do: one that was never iterated closes without a word.
    def __del__(self) -> None:
        self._cancel()

    def _cancel(self) -> None:
        if not self._over:
            self._over = True
            self._leave()
