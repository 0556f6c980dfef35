"""The engine for asyncio: its loop on a thread of its own, callers that stream from it.

Only that thread touches the engine. Callers leave commands in an inbox, which it empties before
each step, so they never wait for a step; each stream has a queue on its caller's event loop, so
a slow reader does not hold up the others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic

from dspark.core import Request, SamplingParams, StepOutput
from dspark.engine.engine import Engine, OnStep
from dspark.engine.stream import Stream, Ticket, put_all
from dspark.errors import ConfigError, DSparkError, EngineError, QueueFullError

MAX_FAILURES = 3

_log = logging.getLogger("dspark.engine")


class AsyncEngine:
    """Runs an engine's loop on a thread of its own; asyncio callers stream from it.

    Callers may be on several event loops. Requests that come before `start` wait for it.

    Args:
        engine: nobody else may use it until this has stopped.
        max_waiting: requests that may wait for a slot; more are refused.
        on_step: is shown every step's outputs, on the engine's thread, before the readers.

    Raises:
        ConfigError: max_waiting is below 1.
    """

    def __init__(
        self, engine: Engine, *, max_waiting: int = 256, on_step: OnStep | None = None
    ) -> None:
        if max_waiting < 1:
            raise ConfigError("max_waiting is too small", found=max_waiting, fix="Use 1 or more")
        self._engine, self._max_waiting, self._on_step = engine, max_waiting, on_step
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        # Whoever passes the lock before it closes to new requests has a ticket, and no ticket is
        # left without a last event.
        self._lock = threading.Lock()
        self._tickets: dict[int, Ticket] = {}  # by request id; only the engine's thread removes
        self._arriving = 0  # requests in the inbox
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._failure: str | None = None
        # Of the engine's thread alone:
        self._deadline: float | None = None
        self._failures = 0  # in a row, without a culprit named
        self._on_step_failed = False
        self._ended: Future[None] = Future()

    # ---- callers, on any thread ------------------------------------------------------------

    async def __aenter__(self) -> AsyncEngine:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> None:
        """Start the thread, unless it runs.

        Raises:
            EngineError: the engine was stopped or has failed.
        """
        with self._lock:
            self._check_open()
            self._launch()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no new requests, end the present ones, and wait for the thread to end.

        Those that have started may go on for ``grace_s`` seconds. The others, and those that
        are not done by then, end as CANCELLED with a last output that has no tokens. Another
        call can shorten the wait.
        """
        deadline = monotonic() + grace_s
        with self._lock:
            self._stopping = True
            thread = self._launch()
        self._inbox.put(partial(self._wind_down, deadline))
        # Not a join in a worker thread: that would keep the program alive if a step hangs.
        await asyncio.shield(asyncio.wrap_future(self._ended))
        thread.join()

    def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams | None = None, sample: int = 0
    ) -> Stream:
        """Answer a prompt step by step; it is in line when this returns.

        Args:
            prompt_ids, params, sample: as for `Engine.submit`.

        Raises:
            RequestError: the prompt cannot be served.
            QueueFullError: too many requests are waiting.
            EngineError: the engine was stopped or has failed. Reading the stream raises it too,
                when the engine fails later or cannot go on with this request.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            self._check_open()
            request = self._engine.request(prompt_ids, params, sample)
            waiting = self._arriving + self._engine.queue.waiting
            if waiting >= self._max_waiting:
                raise QueueFullError(
                    "Too many requests are waiting", found=waiting, fix="Try again later"
                )
            ticket = self._tickets[request.id] = Ticket(request, loop)
            self._arriving += 1
            self._inbox.put(partial(self._admit, ticket))
        return Stream(ticket, partial(self._inbox.put, partial(self._end, ticket)))

    async def answer(
        self, prompt_ids: Sequence[int], params: SamplingParams | None = None, sample: int = 0
    ) -> Request:
        """The finished request for a prompt; arguments and errors as for `stream`."""
        async for output in self.stream(prompt_ids, params, sample):
            request = output.request
        return request

    @property
    def healthy(self) -> bool:
        """The engine has not failed."""
        return self._failure is None

    @property
    def failure(self) -> str | None:
        """Why the engine failed, in one line."""
        return self._failure

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        with self._lock:
            return self._arriving + self._engine.queue.waiting

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return self._engine.queue.running

    def _check_open(self) -> None:
        if self._failure is not None:
            raise _failed(self._failure)
        if self._stopping:
            raise EngineError("The engine was stopped", fix="Make a new AsyncEngine")

    def _launch(self) -> threading.Thread:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="dspark-engine", daemon=True)
            thread.start()
            self._thread = thread
        return self._thread

    # ---- the engine's thread ---------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                self._heed()
                if self._is_over():
                    break
                if self._engine.queue:
                    self._step()
            for ticket in self._open_tickets():
                self._end(ticket)
        except BaseException as error:  # whatever it is, readers must hear of it
            self._fail(error)
        finally:
            self._ended.set_result(None)

    def _heed(self) -> None:
        """Do all that callers asked for; sleep until they ask when there is nothing to step."""
        idle = not self._engine.queue and self._deadline is None
        with suppress(Empty):
            command = self._inbox.get(block=idle)
            while True:
                command()
                command = self._inbox.get_nowait()

    def _is_over(self) -> bool:
        if self._deadline is None:
            return False
        return not self._engine.queue or monotonic() >= self._deadline

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except DSparkError as error:
            self._blame(error)
            return
        self._failures = 0
        self._show(outputs)
        for ticket in put_all(self._addressed(outputs)):
            self._end(ticket)

    def _addressed(self, outputs: list[StepOutput]) -> list[tuple[Ticket, StepOutput]]:
        """Outputs with the tickets they are for; finished ones are closed."""
        found = []
        for output in outputs:
            ticket = self._tickets.get(output.request.id)
            if ticket is not None:
                found.append((ticket, output))
                if output.finished:
                    del self._tickets[output.request.id]
        return found

    def _show(self, outputs: list[StepOutput]) -> None:
        if self._on_step is None:
            return
        try:
            self._on_step(outputs)
        except Exception:
            if not self._on_step_failed:
                _log.exception("on_step failed; this is not said again")
            self._on_step_failed = True

    def _blame(self, error: DSparkError) -> None:
        """End the requests that made a step fail, so that the others can go on.

        Raises:
            EngineError: it goes on failing, and no request is known to be the cause.
        """
        named = error.requests if isinstance(error, EngineError) else ()
        culprits = [self._tickets[i] for i in named if i in self._tickets]
        if not culprits:
            self._failures += 1
            if self._failures == MAX_FAILURES:
                text = f"{MAX_FAILURES} steps in a row failed"
                raise EngineError(text, found=error) from error
            # The steps before the latest request came went well, so it is the likeliest cause.
            running = [t for t in self._open_tickets() if t.request.slot is not None]
            culprits = sorted(running, key=lambda ticket: ticket.request.id)[-1:]
        for ticket in culprits:
            # Not what was found, which may quote the text.
            _log.warning("request %d made a step fail: %s", ticket.request.id, error.what)
            self._end(ticket, error)

    def _fail(self, error: BaseException) -> None:
        _log.critical("The engine failed", exc_info=error)
        failure = " ".join(f"{type(error).__name__}: {error}".split())
        with self._lock:
            self._failure, self._arriving = failure, 0
        for ticket in self._open_tickets():
            # The state of the engine is not known; its slots are freed where that still works.
            with suppress(Exception):
                self._engine.cancel(ticket.request)
            ticket.put(_failed(failure))

    # ---- commands, carried out on the engine's thread --------------------------------------

    def _admit(self, ticket: Ticket) -> None:
        with self._lock:
            self._arriving -= 1
            self._engine.submit_request(ticket.request)

    def _end(self, ticket: Ticket, error: DSparkError | None = None) -> None:
        """Cancel a request, unless it has ended; its reader gets the error or a last output."""
        if self._tickets.pop(ticket.request.id, None) is None:
            return
        self._engine.cancel(ticket.request)
        ticket.put(error or StepOutput(ticket.request, [], [], finished=True))

    def _wind_down(self, deadline: float) -> None:
        self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        for ticket in self._open_tickets():
            # One that gave its place up for a while has said something.
            if ticket.request.slot is None and not ticket.request.output_ids:
                self._end(ticket)

    def _open_tickets(self) -> list[Ticket]:
        with self._lock:
            return list(self._tickets.values())


def _failed(failure: str) -> EngineError:
    return EngineError("The engine failed", found=failure, fix="Make a new one")
