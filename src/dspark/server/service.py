"""What the endpoints share: the running engine, its target, and prompts as token ids."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dspark.core import Grammar, SamplingParams
from dspark.engine.async_engine import AsyncEngine
from dspark.errors import PromptTooLongError, RequestError
from dspark.server.errors import ApiError, refusal
from dspark.server.monitor import Monitor
from dspark.server.schema import ChatRequest, CompletionRequest
from dspark.server.settings import Settings
from dspark.targets.detokenize import TokenTexts
from dspark.targets.target import Target
from dspark.targets.token_bytes import TokenBytes

if TYPE_CHECKING:
    from dspark.server.grammar import JsonGrammars

Ids = list[int]

TOO_LONG = "context_length_exceeded"  # OpenAI's word


@dataclass(slots=True)
class Service:
    """One server's parts.

    Attributes:
        engine: answers.
        target: its model.
        max_len: longest text, prompt included, in tokens.
        settings: limits and choices.
        monitor: figures of all that happened.
        created: when the server came up, in seconds since 1970.
        stopping: no new requests are taken.
        texts: of the target's tokens, for all answers.
        octets: the same as bytes.
    """

    engine: AsyncEngine
    target: Target
    max_len: int
    settings: Settings
    monitor: Monitor
    created: int = field(default_factory=lambda: int(time.time()))
    stopping: bool = False
    texts: TokenTexts = field(init=False)
    octets: TokenBytes = field(init=False)
    _grammars: JsonGrammars | None = None
    # One thread: a long prompt does not hold up the event loop, nor several the engine.
    _encoder: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "dspark-encode")
    )

    def __post_init__(self) -> None:
        self.texts = TokenTexts(self.target.tokenizer)
        self.octets = TokenBytes(self.target.tokenizer)

    def check_model(self, name: str) -> None:
        """Refuse a request for another model.

        Raises:
            ApiError: 404.
        """
        if name != self.settings.model:
            raise ApiError(
                404,
                f"There is no model {name[:100]!r}; this server has {self.settings.model!r}",
                param="model",
                code="model_not_found",
            )

    async def encode(self, body: ChatRequest | CompletionRequest) -> list[Ids]:
        """Token ids of each prompt of a request.

        Raises:
            ApiError: a prompt cannot be encoded, or leaves no room to answer.
        """
        loop = asyncio.get_running_loop()
        if isinstance(body, ChatRequest):
            return [await loop.run_in_executor(self._encoder, self._chat_ids, body)]
        return await loop.run_in_executor(self._encoder, self._completion_ids, body)

    async def params(self, body: ChatRequest | CompletionRequest) -> SamplingParams:
        """How to draw; what OpenAI's documents say holds where a request says nothing.

        Raises:
            ApiError: the answer's schema cannot be served.
        """
        grammar, schema = None, body.answer_schema if isinstance(body, ChatRequest) else None
        if schema is not None:
            loop = asyncio.get_running_loop()
            grammar = await loop.run_in_executor(self._encoder, self._grammar, schema)
        return SamplingParams(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=max(body.top_k or 0, 0),
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=None if body.seed is None else body.seed % 2**63,
            max_new_tokens=body.limit or self.max_len,
            grammar=grammar,
            logprobs=body.alternatives,
        )

    async def stop(self) -> None:
        """Take no new requests, and let those that run finish within the time of grace."""
        self.stopping = True
        await self.engine.stop(self.settings.grace_s)

    def close(self) -> None:
        """Let the encoder's thread go."""
        self._encoder.shutdown(wait=False, cancel_futures=True)

    def _grammar(self, schema: dict[str, Any]) -> Grammar:
        """Compiled schemas are kept: clients send the same one again and again."""
        if self._grammars is None:
            from dspark.server.grammar import JsonGrammars  # seconds to load, for those who ask

            self._grammars = JsonGrammars(self.target)
        with _told_of("response_format"):
            return self._grammars.compile(schema)

    def _chat_ids(self, body: ChatRequest) -> Ids:
        messages = [message.for_template() for message in body.messages]
        with _told_of("messages"):
            return self._fitting(self.target.encode_messages(messages))

    def _completion_ids(self, body: CompletionRequest) -> list[Ids]:
        found = []
        for prompt in body.prompts:
            with _told_of("prompt"):
                if isinstance(prompt, str):
                    prompt = self.target.prompts.text(prompt, bool(body.parse_special))
                found.append(self._fitting(prompt))
        return found

    def _fitting(self, ids: Ids) -> Ids:
        """Ids that leave room for an answer."""
        if len(ids) >= self.max_len:
            text = f"The prompt has {len(ids)} tokens and leaves no room to answer; "
            text += f"the longest text, prompt included, is {self.max_len} tokens"
            raise refusal(text, code=TOO_LONG)
        return ids


@contextmanager
def _told_of(param: str) -> Iterator[None]:
    """Whatever is wrong with a prompt is told with the field's name."""
    try:
        yield
    except ApiError as error:
        raise refusal(error.detail.message, param, error.detail.code) from error
    except RequestError as error:  # empty, too long, or nothing for the chat template
        code = TOO_LONG if isinstance(error, PromptTooLongError) else None
        raise refusal(str(error), param, code) from error
