"""One answer under way: the engine's steps in, text that may be shown out, and its counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from operator import add
from time import perf_counter

from dspark.core import FinishReason, RoundRecord, StepOutput
from dspark.engine.stream import Event, Stream
from dspark.errors import DSparkError
from dspark.server.errors import stopping
from dspark.server.metrics import Metrics
from dspark.server.text import StopStrings, Token
from dspark.targets.detokenize import TextStream, TokenTexts

Emit = Callable[["Piece | Exception"], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one engine step adds to one answer.

    Attributes:
        index: of the answer among those of its request.
        made: tokens of the step, up to the one that completes a stop string.
        shown: tokens whose text may be shown now, held back ones of earlier steps included.
        record: of the round; None for what follows the prompt.
        finish: why the answer ends here, in OpenAI's words; None where it goes on.
    """

    index: int
    made: list[Token]
    shown: list[Token]
    record: RoundRecord | None
    finish: str | None

    @property
    def text(self) -> str:
        """The text that may be shown now."""
        return "".join(token.text for token in self.shown)


@dataclass(slots=True)
class Counts:
    """Figures of answers: tokens, and of their rounds the sums."""

    tokens: int = 0
    rounds: int = 0
    committed: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0

    def add(self, tokens: int, record: RoundRecord | None) -> None:
        """Count a step's tokens, and its round."""
        self.tokens += tokens
        if record is not None:
            self.rounds += 1
            self.committed += record.committed
            self.drafted += record.drafted
            self.verified += record.verified
            self.accepted += record.accepted

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(add, astuple(self), astuple(other)))


@dataclass(slots=True)
class Answer:
    """One sample of one prompt.

    Attributes:
        index: among the answers of the request.
        outputs: the engine's stream; leaving it cancels the request.
        texts: of the target's tokens.
        stops: strings that end the text and are not part of it.
        metrics: hears of tokens.
        pieces: those handed over.
        finish: why it ended, in OpenAI's words; None while it runs, and where it never ended.
    """

    index: int
    outputs: Stream
    texts: TokenTexts
    stops: Sequence[str]
    metrics: Metrics
    counts: Counts = field(default_factory=Counts)
    pieces: list[Piece] = field(default_factory=list)
    finish: str | None = None

    @property
    def text(self) -> str:
        """All that was shown."""
        return "".join(piece.text for piece in self.pieces)

    def run(self, emit: Emit) -> None:
        """Hand pieces over as they come, up to the last one or the error that ends them.

        An ApiError says that the server stops, an EngineError that the engine failed.
        """
        text, filter_, last = TextStream(self.texts), StopStrings(self.stops), perf_counter()

        def take(event: Event) -> None:
            nonlocal last
            try:
                if isinstance(event, DSparkError):
                    raise event
                if event.token_ids:
                    now = perf_counter()
                    count, first = len(event.token_ids), not self.counts.tokens
                    self.metrics.tokens_came(count, now - last, first)
                    last = now
                piece = self._take(event, text, filter_)
            except Exception as error:
                self.outputs.cancel()
                emit(error)
                return
            self.pieces.append(piece)
            if piece.finish is not None:
                self.outputs.cancel()  # a stop string ends an answer before the engine does
            emit(piece)

        self.outputs.listen(take)

    def _take(self, output: StepOutput, text: TextStream, filter_: StopStrings) -> Piece:
        tokens = self._tokens(output, text)
        made, shown, stopped = tokens, tokens, False
        if self.stops:
            made, shown, stopped = _filtered(tokens, filter_)
        self.counts.add(len(made), output.record)
        if stopped:
            self.finish = "stop"
        elif output.finished:
            if output.request.finish is FinishReason.CANCELLED:
                raise stopping()
            shown = [*shown, *filter_.flush()]
            assert output.request.finish is not None
            self.finish = output.request.finish.value
        return Piece(self.index, made, shown, output.record, self.finish)

    def _tokens(self, output: StepOutput, text: TextStream) -> list[Token]:
        """The step's tokens with the text that each completes; the last of all gets the rest."""
        count = len(output.token_ids)
        tokens = []
        for i, (token_id, kind) in enumerate(zip(output.token_ids, output.kinds, strict=True)):
            words = text.push(token_id)
            if output.finished and i == count - 1:
                words += text.rest()
            tokens.append(
                Token(token_id, words, kind, output.logprobs[i] if output.logprobs else None)
            )
        return tokens


def _filtered(
    tokens: Sequence[Token], filter_: StopStrings
) -> tuple[list[Token], list[Token], bool]:
    """Tokens up to the one that completes a stop string, those to show, and whether it came."""
    made: list[Token] = []
    shown: list[Token] = []
    for token in tokens:
        now, stopped = filter_.push(token)
        made.append(token)
        shown += now
        if stopped:
            return made, shown, True
    return made, shown, False
