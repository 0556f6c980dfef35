"""What clients may send to the two completion endpoints: the fields that are served.

Those that are known but not served are in `server.fields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from dspark.server import fields
from dspark.server.errors import refusal
from dspark.server.fields import Inert

MOST_ANSWERS = 128  # of one request
COMPLETION_TOKENS = 16  # what OpenAI's older endpoint gives unless told
MOST_STOPS = 4


def _writable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair at character {error.start + 1}"
        raise ValueError(f"not valid Unicode: {half}") from None
    return text


Text = Annotated[str, AfterValidator(_writable)]


class Strict(BaseModel):
    """No unknown fields, no conversions, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    inert: ClassVar[Mapping[str, Inert]] = {}

    @model_validator(mode="before")
    @classmethod
    def _served(cls, given: Any) -> Any:
        """Set fields aside that change nothing, and refuse those that would."""
        if not isinstance(given, dict):
            return given
        names = {field.alias or name for name, field in cls.model_fields.items()}
        return fields.sift(given, names, cls.inert, cls.__name__)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        more = {name: field.json_schema() for name, field in cls.inert.items()}
        handler.resolve_ref_schema(found).setdefault("properties", {}).update(more)
        return found


class TextPart(Strict):
    """A piece of a message."""

    inert = fields.PART
    type: Literal["text"]
    text: Text


class Message(Strict):
    """One turn of a conversation; an assistant may have said nothing."""

    inert = fields.MESSAGE
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)] | None = Field(
        None, validate_default=True
    )

    @field_validator("content")
    @classmethod
    def _said(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and info.data.get("role", "assistant") != "assistant":
            raise PydanticCustomError("missing", "required: a text, or a list of text parts")
        return content

    def for_template(self) -> dict[str, str]:
        """As a chat template reads it; parts are put end to end."""
        text = self.content or ""
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text}


class StreamOptions(Strict):
    """What a stream tells besides text."""

    inert = fields.STREAM_OPTIONS
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: every chunk has the usage so far. Not OpenAI's."
    )


def _few(stops: list[str]) -> list[str]:
    if len(stops) > MOST_STOPS:
        raise ValueError(f"takes at most {MOST_STOPS} strings, not {len(stops)}")
    return stops


StopString = Annotated[Text, Field(min_length=1, max_length=500)]
StopStrings = Annotated[
    list[StopString], Field(json_schema_extra={"maxItems": MOST_STOPS}), AfterValidator(_few)
]


class CompletionFields(Strict):
    """What both endpoints take.

    Attributes:
        asked: the field that is answered.
    """

    asked: ClassVar[str]
    model: str
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="The same as max_tokens.")
    temperature: float | None = Field(None, ge=0, le=2, description="Unset is 1; 0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(
        None, ge=-1, lt=2**31, description="0 and -1 keep all tokens. Not OpenAI's."
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopString | StopStrings | None = None
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    dspark_tokens: bool | None = Field(
        None, description="Tell how each token came about. Not OpenAI's."
    )
    # What these change is not the answer.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def model_post_init(self, context: Any) -> None:
        if self.wants_usage and not self.stream:
            raise refusal("stream_options needs stream to be true", "stream_options")
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise refusal("max_tokens and max_completion_tokens differ", "max_tokens")

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

    @property
    def wants_running_usage(self) -> bool:
        """Its other chunks have one too."""
        return self.wants_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )


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

    inert = fields.CHAT
    asked: ClassVar[str] = "messages"
    messages: list[Message] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    # What these change is not the answer.
    parallel_tool_calls: bool | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        if self.top_logprobs and not self.logprobs:
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

    inert = fields.COMPLETION
    asked: ClassVar[str] = "prompt"
    prompt: Text | list[Text] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = Field(None, ge=1)
    parse_special: bool | None = Field(
        None, description="Read spellings of control tokens as those tokens. Not OpenAI's."
    )

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
        return self.max_completion_tokens or self.max_tokens or COMPLETION_TOKENS

    @property
    def alternatives(self) -> int | None:
        """As in `ChatRequest`."""
        return self.logprobs
