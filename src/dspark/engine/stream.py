"""From the engine's thread to callers on their event loops: what each request gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from dspark.core import Request, StepOutput
from dspark.errors import DSparkError

Event = StepOutput | DSparkError
Sink = Callable[[Event], None]


class Ticket:
    """A request and where its events go: outputs, or the error that ends it.

    Attributes:
        events: wait here for a reader.
        sink: takes events instead, on the caller's event loop.
    """

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request, self.loop = request, loop
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.sink: Sink | None = None

    def put(self, event: Event) -> bool:
        """Hand over an event from any thread; False when the caller's loop is closed."""
        return _wake(self.loop, partial(self.put_here, event))

    def put_here(self, event: Event) -> None:
        """Hand over an event on the caller's event loop."""
        if self.sink is None:
            self.events.put_nowait(event)
        else:
            self.sink(event)


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
        ticket.put_here(output)


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
    event loop that made it, or let it call with `listen`.
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
            self.cancel()
            raise
        if isinstance(event, DSparkError):
            self._over = True
            raise event
        self._over = self._over or event.finished
        return event

    def listen(self, sink: Sink) -> None:
        """Have every event handed over as it comes, without a task that waits for it.

        The request then runs until its end or `cancel`, whoever holds the stream.

        Args:
            sink: gets outputs up to one that is `finished`, or the error that ends them, on the
                event loop that made the stream; nothing after `cancel`. It must not raise.
        """

        def hand_over(event: Event) -> None:
            if isinstance(event, DSparkError) or event.finished:
                self._end()
            sink(event)

        self._ticket.sink = hand_over
        while not self._over and not self._ticket.events.empty():
            hand_over(self._ticket.events.get_nowait())

    def cancel(self) -> None:
        """Cancel the request, which the engine does before its next step."""
        if not self._over:
            self._end()
            self._leave()

    async def aclose(self) -> None:
        """The same as `cancel`."""
        self.cancel()

    # An async generator would not do: one that was never iterated closes without a word.
    def __del__(self) -> None:
        self.cancel()

    def _end(self) -> None:
        self._over = True
        self._ticket.sink = None  # it holds this stream
