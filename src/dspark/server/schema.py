"""What clients may send to the two completion endpoints.

Every field that OpenAI documents is declared. One that is not served passes at values that change
nothing and is refused otherwise; a field nobody documents is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from pydantic_core.core_schema import no_info_plain_validator_function

from dspark.server.errors import refusal

MOST_ANSWERS = 128  # of one request
COMPLETION_TOKENS = 16  # what OpenAI's older endpoint gives unless told


@dataclass(frozen=True, eq=False)  # typing would take Inert((0,)) and Inert((False,)) for one
class Inert:
    """Marks a field that is known but not served.

    Attributes:
        same: values that change nothing; null always is one.
    """

    same: tuple[Any, ...] = ()

    def check(self, value: Any) -> Any:
        """Pass a value that changes nothing."""
        if value is None or any(type(value) is type(s) and value == s for s in self._all()):
            return value
        raise ValueError(f"not supported by this server; leave it out{self._or_give()}")

    def _all(self) -> list[Any]:
        """The values, whole numbers also as floats."""
        return [*self.same, *(float(s) for s in self.same if type(s) is int)]

    def _or_give(self) -> str:
        return f", or give {' or '.join(map(repr, self.same))}" if self.same else ""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_plain_validator_function(self.check, metadata={"inert": True})

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": [None, *self.same], "description": "Known, but only its default is served."}


def _writable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode: half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_writable)]


class Strict(BaseModel):
    """No unknown fields, no conversions, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: Annotated[Any, Inert()] = None
    refusal: Annotated[Any, Inert()] = None
    audio: Annotated[Any, Inert()] = None
    annotations: Annotated[Any, Inert(([],))] = None
    tool_calls: Annotated[Any, Inert(([],))] = None
    function_call: Annotated[Any, Inert()] = None

    def for_template(self) -> dict[str, str]:
        """As a chat template reads it; parts are put end to end."""
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text}


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Inert((False,))] = None


StopString = Annotated[str, Field(min_length=1, max_length=500)]


class CompletionFields(Strict):
    """What both endpoints take."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="Unset is 1; 0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31, description="0 keeps all tokens. Not OpenAI's.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    dspark_tokens: bool = Field(False, description="Tell how each token came about. Not OpenAI's.")
    frequency_penalty: Annotated[Any, Inert((0,))] = None
    presence_penalty: Annotated[Any, Inert((0,))] = None
    logit_bias: Annotated[Any, Inert(({},))] = None

    def model_post_init(self, context: Any) -> None:
        if self.stream_options is not None and not self.stream:
            raise refusal("stream_options needs stream to be true", "stream_options")

    @property
    def stops(self) -> list[str]:
        """Stop strings, distinct."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop
        return list(dict.fromkeys(given or []))

    @property
    def answers(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """A streamed answer ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """A named schema; `strict` changes nothing: the answer always follows it."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    content: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class ChatRequest(CompletionFields):
    """Body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # What these change is not the answer.
    store: bool | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    audio: Annotated[Any, Inert()] = None
    functions: Annotated[Any, Inert(([],))] = None
    function_call: Annotated[Any, Inert(("none", "auto"))] = None
    moderation: Annotated[Any, Inert()] = None
    modalities: Annotated[Any, Inert((["text"],))] = None
    prediction: Annotated[Any, Inert()] = None
    reasoning_effort: Annotated[Any, Inert(("none",))] = None
    response_format: ResponseFormat | None = None
    service_tier: Annotated[Any, Inert(("auto", "default"))] = None
    tool_choice: Annotated[Any, Inert(("none", "auto"))] = None
    tools: Annotated[Any, Inert(([],))] = None
    verbosity: Annotated[Any, Inert(("medium",))] = None
    web_search_options: Annotated[Any, Inert()] = None

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise refusal("max_tokens and max_completion_tokens differ", "max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise refusal("top_logprobs needs logprobs to be true", "top_logprobs")

    @property
    def limit(self) -> int | None:
        """Longest answer in tokens; None is as long as there is room."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Log probabilities to list beside the chosen token's; None lists not even that."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """JSON schema that the answer must follow; None for any text."""
        if isinstance(self.response_format, JsonSchemaFormat):
            return self.response_format.json_schema.content
        return {"type": "object"} if isinstance(self.response_format, JsonObjectFormat) else None


class CompletionRequest(CompletionFields):
    """Body of `/v1/completions`."""

    prompt: Text | list[Text] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = Field(None, ge=1)
    echo: Annotated[Any, Inert((False,))] = None
    suffix: Annotated[Any, Inert()] = None

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        if self.best_of not in (None, self.answers):
            raise refusal(
                "best_of is not supported; leave it out, or give the same as n", "best_of"
            )
        if not self.prompt and self.prompt != "":
            raise refusal("prompt is an empty list", "prompt")
        if len(self.prompts) * self.answers > MOST_ANSWERS:
            raise refusal(f"More than {MOST_ANSWERS} answers in one request", "n")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each prompt, as text or as ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @property
    def limit(self) -> int:
        """Longest answer in tokens."""
        return self.max_tokens or COMPLETION_TOKENS

    @property
    def alternatives(self) -> int | None:
        """As in `ChatRequest`."""
        return self.logprobs
