"""From a request's prompts to its answers, all of them asked of the engine at once."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from time import perf_counter
from typing import Any

from dspark.engine.stream import Stream
from dspark.errors import DSparkError, RequestError
from dspark.server.answer import Answer, Counts, Piece
from dspark.server.errors import refusal, to_api_error
from dspark.server.schema import ChatRequest, CompletionRequest
from dspark.server.service import Service

_log = logging.getLogger("dspark.server")


class Completion:
    """The answers to one HTTP request, made by `start`.

    They run from then until `close`, which must be called.

    Attributes:
        answers: to the first prompt, then to the second, and so on.
    """

    def __init__(
        self,
        service: Service,
        prompts: Sequence[list[int]],
        streams: Sequence[Stream],
        stops: Sequence[str],
    ) -> None:
        self._service, self._prompts = service, prompts
        self._start = perf_counter()
        # What `pieces` has not seen, and what it waits for. An asyncio.Queue would do the same and
        # cost more, for every step of every answer.
        self._news: deque[Piece | Exception] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.call_later(
            service.settings.timeout_s, self._tell, TimeoutError()
        )
        self._unfinished = "cancelled"  # how answers ended that did not end by themselves
        texts, metrics = service.texts, service.monitor.metrics
        self.answers = [
            Answer(i, stream, texts, stops, metrics) for i, stream in enumerate(streams)
        ]
        for answer in self.answers:
            answer.run(self._hear)

    @classmethod
    async def start(cls, service: Service, body: ChatRequest | CompletionRequest) -> Completion:
        """Ask the engine for all answers at once.

        Raises:
            ApiError, RequestError, QueueFullError, EngineError: the request cannot be served;
                nothing of it runs then.
        """
        prompts = await service.encode(body)
        params = await service.params(body)
        streams: list[Stream] = []
        try:
            for ids in prompts:
                for sample in range(body.answers):
                    streams.append(service.engine.stream(ids, params, sample))
        except DSparkError as error:
            for stream in streams:
                stream.cancel()
            if type(error) is RequestError:  # what the engine refuses is the prompt
                raise refusal(str(error), body.asked) from error
            raise
        return cls(service, prompts, streams, body.stops)

    async def pieces(self) -> AsyncGenerator[Piece]:
        """Pieces of all answers as they come, to one caller.

        Raises:
            ApiError: an answer failed, the server stops, or the time is up.
        """
        unfinished = len(self.answers)
        while unfinished:
            try:
                while not self._news:
                    self._waiter = self._loop.create_future()
                    await self._waiter
                piece = self._news.popleft()
                if isinstance(piece, Exception):
                    raise piece
            except Exception as error:
                self._unfinished = "timeout" if isinstance(error, TimeoutError) else "error"
                raise to_api_error(error) from error
            unfinished -= piece.finish is not None
            yield piece

    async def close(self) -> None:
        """End what still runs, and note how everything ended."""
        self._deadline.cancel()
        for answer in self.answers:
            answer.outputs.cancel()
        seconds = perf_counter() - self._start
        reasons = [answer.finish or self._unfinished for answer in self.answers]
        for reason in reasons:
            self._service.monitor.metrics.answer_ended(reason, seconds)
        line = "%s: %d prompt tokens, %d tokens, %.2f s"
        _log.info(line, ", ".join(reasons), self.prompt_tokens, self.counts.tokens, seconds)
        if self._service.settings.log_prompts:
            for ids in self._prompts:
                _log.info("prompt: %r", self._service.target.tokenizer.decode(ids))
            for answer in self.answers:
                _log.info("answer: %r", answer.text)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; several answers to one do not make it more."""
        return sum(map(len, self._prompts))

    @property
    def counts(self) -> Counts:
        """Sums over all answers."""
        return sum((answer.counts for answer in self.answers), Counts())

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object, with what speculation did."""
        counts = self.counts
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": counts.tokens,
            "total_tokens": self.prompt_tokens + counts.tokens,
            "speculative": {
                "drafted": counts.drafted,
                "verified": counts.verified,
                "accepted": counts.accepted,
                "accepted_length": counts.committed / counts.rounds if counts.rounds else None,
            },
        }

    def _hear(self, news: Piece | Exception) -> None:
        if isinstance(news, Exception) and to_api_error(news).status == 500:
            _log.error("A request failed", exc_info=news)
        self._tell(news)

    def _tell(self, news: Piece | Exception) -> None:
        self._news.append(news)
        if self._waiter is not None and not self._waiter.done():  # done: woken or cancelled
            self._waiter.set_result(None)
