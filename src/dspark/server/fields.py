"""Fields that clients send and that are not served: which values change nothing, and why no other.

Load testers, editors and other engines' clients send many at their defaults. A field that is not
served passes at a value that changes nothing and is refused by name at any other. So is a field
that nobody here knows, unless it is null or the server was told to ignore such.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

IGNORE_UNKNOWN: ContextVar[bool] = ContextVar("ignore_unknown", default=False)


@dataclass(frozen=True, eq=False)  # typing would take (0,) and (False,) for one
class Inert:
    """A field that is known but not served.

    Attributes:
        reason: why other values are refused; "" where any value passes.
        same: values that change nothing; null always is one.
        idle: another field and its value, beside which any value of this one changes nothing.
    """

    reason: str
    same: tuple[Any, ...] = ()
    idle: tuple[str, Any] | None = None

    def passes(self, value: Any, beside: Mapping[str, Any]) -> bool:
        """Whether a value changes nothing, among the fields `beside` it."""
        if not self.reason or value is None:
            return True
        if self.idle is not None and beside.get(self.idle[0]) == self.idle[1]:
            return True
        wholes = [float(s) for s in self.same if type(s) is int]
        return any(type(value) is type(s) and value == s for s in [*self.same, *wholes])

    @property
    def refusal(self) -> str:
        """What the sender of another value is told."""
        give = f", or give {' or '.join(map(json.dumps, self.same))}" if self.same else ""
        return f"not supported by this server: {self.reason}; leave it out{give}"

    def json_schema(self) -> dict[str, Any]:
        """As OpenAPI describes it."""
        if not self.reason:
            return {"description": "Changes nothing."}
        return {"enum": [None, *self.same], "description": "Known, but only its default is served."}


def _of(reason: str, **same: Any) -> dict[str, Inert]:
    """Fields refused for one reason, each with its neutral value (None: null alone)."""
    return {name: Inert(reason, () if v is None else (v,)) for name, v in same.items()}


def _free(*names: str) -> dict[str, Inert]:
    """Fields that pass with any value."""
    return {name: Inert("") for name in names}


# ---- requests -------------------------------------------------------------------------------

_DRAWING = "tokens are drawn with temperature, top_k and top_p alone"
_PENALTIES = "the target's own distribution is kept, without penalties and biases"
_STOPPING = "an answer ends at the target's own stop tokens, at stop strings and at max_tokens"
_SCHEMAS = "answers follow a JSON schema by response_format, in chat"
_TEMPLATE = "the target's own chat template is used as it stands"
_TEXT = "special tokens and stop strings are left out of the text"
_IDS = "answers are told as text; logprobs has the bytes of each token"
_TEXTS = "it reads and writes text alone"
_ROLES = "the chat template is given roles and texts"
_TOOLS = "it calls no tools"
_ORDER = "requests are served in the order they come"

_BOTH: dict[str, Inert] = {
    **_of(_PENALTIES, frequency_penalty=0, presence_penalty=0, logit_bias={}),
    **_of(_PENALTIES, repetition_penalty=1, repeat_penalty=1, no_repeat_ngram_size=0),
    **_of(_PENALTIES, dry_multiplier=0, bad_words=[], allowed_token_ids=None),
    **_of(_DRAWING, min_p=0, typical_p=1, tfs_z=1, top_a=0, mirostat=0, dynatemp_range=0),
    **_of(_DRAWING, xtc_probability=0, epsilon_cutoff=0, eta_cutoff=0, logits_processors=[]),
    **_of(_DRAWING, use_beam_search=False, length_penalty=1, early_stopping=False),
    **_of(_STOPPING, min_tokens=0, ignore_eos=False, stop_token_ids=[]),
    **_of(_SCHEMAS, guided_json=None, guided_regex=None, guided_choice=None, guided_grammar=None),
    **_of(_SCHEMAS, structured_outputs={}, grammar="", regex=None, ebnf=None),
    **_of(_TEXT, skip_special_tokens=True, spaces_between_special_tokens=True),
    **_of(_TEXT, include_stop_str_in_output=False),
    **_of(_IDS, return_tokens_as_token_ids=False, return_token_ids=False, n_probs=0),
    **_of("hidden states stay here", return_hidden_states=False),
    **_of("nothing is told of the prompt's own tokens", echo=False, prompt_logprobs=None),
    **_of("a prompt that is too long is refused", truncate_prompt_tokens=None),
    **_of(_ORDER, priority=0),
    # These shape what is refused above, and alone do nothing.
    **_free("repeat_last_n", "mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold"),
    **_free("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    **_free("cache_prompt", "cache_salt", "include_reasoning", "separate_reasoning"),
}

CHAT: dict[str, Inert] = {
    **_BOTH,
    **_of(_TEMPLATE, add_generation_prompt=True, continue_final_message=False),
    **_of(_TEMPLATE, chat_template=None, chat_template_kwargs={}, documents=[]),
    **_of(_TEMPLATE, add_special_tokens=False),
    **_of(
        "it reads and writes text alone", audio=None, modalities=["text"], mm_processor_kwargs={}
    ),
    **_of("drafts come from the drafter", prediction=None),
    **_of("it has no web search", web_search_options=None),
    **_of("answers pass no moderation", moderation=None),
    **_of("the target does not reason apart from its answer", reasoning_effort="none"),
    **_of("the target has one manner of speaking", verbosity="medium"),
    "service_tier": Inert("it has one tier", ("auto", "default")),
    "tools": Inert(_TOOLS, ([],), idle=("tool_choice", "none")),
    "tool_choice": Inert(_TOOLS, ("none", "auto")),
    "functions": Inert(_TOOLS, ([],), idle=("function_call", "none")),
    "function_call": Inert(_TOOLS, ("none", "auto")),
}

COMPLETION: dict[str, Inert] = {
    **_BOTH,
    **_of("text is continued at its end", suffix=""),
    **_of(_SCHEMAS, response_format={"type": "text"}),
    **_of("the tokenizer adds its own", add_special_tokens=True),
}

STREAM_OPTIONS: dict[str, Inert] = {
    **_of("chunks have their plain length", include_obfuscation=False),
}

# ---- messages -------------------------------------------------------------------------------

_MARKS = ("id", "cache_control")

MESSAGE: dict[str, Inert] = {
    **_of(
        "the chat template is given roles and texts", name="", reasoning="", reasoning_content=""
    ),
    **_of("the chat template is given roles and texts", refusal="", prefix=False, partial=False),
    **_of(_TEXTS, audio=None, images=[]),
    **_of(_TOOLS, tool_calls=[], function_call=None, tool_call_id=""),
    **_of("texts have no annotations", annotations=[]),
    # What answers carry and clients send back, and what clients keep of a message for themselves.
    **_free(*_MARKS, "object", "status", "created", "created_at", "createdAt", "timestamp"),
    **_free("metadata", "dspark", "finish_reason", "model"),
}

PART: dict[str, Inert] = {
    **_of("texts have no annotations", annotations=[]),
    **_free(*_MARKS, "prompt_cache_breakpoint"),
}


def sift(
    given: Mapping[str, Any], served: Collection[str], inert: Mapping[str, Inert], title: str
) -> dict[str, Any]:
    """The fields that are served; the others must change nothing.

    Args:
        given: as it came.
        served: names of fields that something is made of.
        inert: fields that are known besides.
        title: of the model that they belong to.

    Raises:
        ValidationError: naming those that would change something, and those nobody knows.
    """
    kept: dict[str, Any] = {}
    wrong: list[InitErrorDetails] = []
    for name, value in given.items():
        known = inert.get(name)
        if name in served:
            kept[name] = value
        elif known is not None:
            if not known.passes(value, given):
                kind = PydanticCustomError("not_served", known.refusal)
                wrong.append(InitErrorDetails(type=kind, loc=(name,), input=value))
        elif value is not None and not IGNORE_UNKNOWN.get():
            wrong.append(InitErrorDetails(type="extra_forbidden", loc=(name,), input=value))
    if wrong:
        raise ValidationError.from_exception_data(title, wrong)
    return kept
