"""What callers get: the completion of a prompt, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.core import Request, RoundRecord, StepOutput, TokenKind, TokenLogprobs
from dspark.targets.detokenize import TextStream, TokenTexts
from dspark.targets.target import Target


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The completion of one prompt, and how it came about.

    Attributes:
        prompt_token_ids: the prompt, the chat template included.
        text: of the completion, without special tokens.
        token_ids: of the completion, the stop token included.
        finish_reason: "stop" (at a stop token), "length" (at `max_new_tokens` or at the end of the
            room) or "cancelled".
        kinds: how each token came about: accepted from a draft, drawn after one, or plain.
        rounds: a record of each round of draft and verification.
        logprobs: of each token; None unless `SamplingParams.logprobs` asks for them.
    """

    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    kinds: tuple[TokenKind, ...]
    rounds: tuple[RoundRecord, ...]
    logprobs: tuple[TokenLogprobs, ...] | None

    def __str__(self) -> str:
        return self.text

    @property
    def drafted(self) -> int:
        """Draft tokens made."""
        return sum(record.drafted for record in self.rounds)

    @property
    def verified(self) -> int:
        """Draft tokens sent to the target."""
        return sum(record.verified for record in self.rounds)

    @property
    def accepted(self) -> int:
        """Draft tokens that are part of the text."""
        return sum(record.accepted for record in self.rounds)

    @property
    def accepted_length(self) -> float | None:
        """Mean tokens committed in a round, the bonus token included; None without rounds."""
        if not self.rounds:
            return None
        return sum(record.committed for record in self.rounds) / len(self.rounds)


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What one engine step adds to a completion.

    Attributes:
        text: empty where a token ends inside a character.
        token_ids: the new tokens.
        kinds: how each of them came about.
        output: the whole completion, with the last piece; None before.
    """

    text: str
    token_ids: tuple[int, ...]
    kinds: tuple[TokenKind, ...]
    output: RequestOutput | None = None

    def __str__(self) -> str:
        return self.text


def request_output(request: Request, steps: Sequence[StepOutput], target: Target) -> RequestOutput:
    """The completion of a finished request, from what its steps gave."""
    assert request.finish is not None
    told = request.params.logprobs is not None
    return RequestOutput(
        tuple(request.prompt_ids),
        target.decode(request.output_ids),
        tuple(request.output_ids),
        request.finish.value,
        tuple(kind for step in steps for kind in step.kinds),
        tuple(request.rounds),
        tuple(one for step in steps for one in step.logprobs or ()) if told else None,
    )


class Pieces:
    """Turns the steps of one request into pieces of text.

    Args:
        texts: of the target's single tokens.
    """

    def __init__(self, target: Target, texts: TokenTexts) -> None:
        self._target, self._text = target, TextStream(texts)
        self._steps: list[StepOutput] = []

    def take(self, step: StepOutput) -> TextPiece:
        """What a step adds; the piece of the last step has the whole completion."""
        self._steps.append(step)
        text = "".join(map(self._text.push, step.token_ids))
        output = None
        if step.finished:
            text += self._text.rest()
            output = request_output(step.request, self._steps, self._target)
        return TextPiece(text, tuple(step.token_ids), tuple(step.kinds), output)
