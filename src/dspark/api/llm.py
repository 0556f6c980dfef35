"""`LLM`: a target with its drafter behind two methods, `generate` and `chat`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

from dspark.api.models import load_models
from dspark.api.names import AUTO
from dspark.api.outputs import Pieces, RequestOutput, TextPiece, request_output
from dspark.api.prompts import (
    Asked,
    Conversation,
    Params,
    Prompt,
    Prompts,
    asked_conversations,
    asked_prompts,
)
from dspark.core import DEFAULT_RULE, Request, SamplingParams, StepOutput
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.engine.policies import Policy
from dspark.engine.scheduler import Adaptive
from dspark.engine.tables import calibration_of
from dspark.errors import ConfigError, RequestError
from dspark.fetching.known import DEFAULT_TARGET
from dspark.tables.calibration import CalibrationTable
from dspark.targets.detokenize import TokenTexts
from dspark.targets.target import Target
from dspark.targets.weights import SAME


class LLM:
    """A target that answers, faster where a drafter helps, with the target's own text.

    One thread may use it at a time; `AsyncLLM` serves many callers. `close`, or the end of a `with`
    block, lets the models go.

    Args:
        target: known name, local folder, Hugging Face id, or a loaded target.
        drafter: a shipped name, a checkpoint folder, or a loaded drafter; "auto" takes the shipped
            one for this target, if there is one; None or "none" decodes plainly.
        policy: how many draft tokens to verify: "auto", "off", "fixed:K", "threshold:P", "causal"
            or "pipelined". "auto" measures this machine for some seconds, unless that was done.
        dtype, weights, device, threads: how a target is loaded (`load_target`).
        slots: requests that run at the same time; others wait.
        max_len: longest text in tokens, prompt included; at most what the target was made for.
        seed: of the random numbers of requests that have no seed of their own.
        cache_gib: memory for keys and values; None is room for every slot.
        verification: rule by which drafts above temperature 0 are accepted: "token" or "block".

    Attributes:
        target: the loaded target.
        drafter: the loaded drafter; None without one.
        engine: makes the steps; for callers with a loop of their own.

    Raises:
        CheckpointError: a model cannot be loaded.
        IncompatibleDrafterError: the drafter is for another target.
        ConfigError: an option cannot be used.
    """

    def __init__(
        self,
        target: str | Path | Target = DEFAULT_TARGET,
        *,
        drafter: str | Path | Drafter | None = AUTO,
        policy: str | Policy = AUTO,
        dtype: str = AUTO,
        weights: str = SAME,
        device: str = AUTO,
        threads: int | None = None,
        slots: int = 8,
        max_len: int = 2048,
        seed: int = 0,
        cache_gib: float | None = None,
        verification: str = DEFAULT_RULE,
    ) -> None:
        self.target, self.drafter = load_models(
            target, drafter, dtype, weights=weights, device=device, threads=threads
        )
        self._engine: Engine | None = Engine(
            self.target,
            self.drafter,
            policy,
            slots,
            max_len,
            seed,
            cache_gib=cache_gib,
            verification=verification,
        )
        self._texts = TokenTexts(self.target.tokenizer)
        self._steps: dict[int, list[StepOutput]] = {}  # of requests under way, by id

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise ConfigError("The LLM is closed", fix="Make a new one")
        return self._engine

    @property
    def calibration(self) -> CalibrationTable | None:
        """The drafter's calibration table, whether or not the policy reads it; None without one."""
        policy = self.engine.policy
        if isinstance(policy, Adaptive):
            return policy.tables.calibration
        if self.drafter is None:
            return None
        return calibration_of(self.drafter, self.engine.verification)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the models go; a second call does nothing."""
        self._engine = self.drafter = None
        self._steps.clear()

    # ---- completions ----------------------------------------------------------------------

    @overload
    def generate(
        self, prompts: Prompt, params: SamplingParams | None = None, *, raw: bool = False
    ) -> RequestOutput: ...
    @overload
    def generate(
        self, prompts: Prompts, params: Params = None, *, raw: bool = False
    ) -> list[RequestOutput]: ...
    @overload
    def generate(
        self,
        prompts: Prompt,
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        stream: Literal[True],
    ) -> Iterator[TextPiece]: ...
    def generate(
        self, prompts: Any, params: Any = None, *, raw: bool = False, stream: bool = False
    ) -> Any:
        """Complete one prompt or several; several run at the same time.

        Args:
            prompts: a text, its token ids, or a list of texts or of token ids.
            params: how to draw, for all prompts or one for each; greedy by default.
            raw: continue a text as it is; otherwise it is one user turn of the chat template.
            stream: give pieces as they come; for one prompt.

        Returns:
            The completion; a list of them, in order, for a list of prompts; or an iterator over
            `TextPiece`, the last of which has the completion. To leave its loop ends the request.

        Raises:
            RequestError: a prompt cannot be served, and none runs; `prompts[i]` says which one.
            EngineError: a step failed. The LLM can go on with other prompts.
            ConfigError: the LLM is closed.
        """
        return self._complete(asked_prompts(self._open(), prompts, params, raw), stream)

    @overload
    def chat(
        self, messages: Conversation, params: SamplingParams | None = None, *, tools: Any = None
    ) -> RequestOutput: ...
    @overload
    def chat(
        self, messages: list[Conversation], params: Params = None, *, tools: Any = None
    ) -> list[RequestOutput]: ...
    @overload
    def chat(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        *,
        tools: Any = None,
        stream: Literal[True],
    ) -> Iterator[TextPiece]: ...
    def chat(
        self, messages: Any, params: Any = None, *, tools: Any = None, stream: bool = False
    ) -> Any:
        """Complete one conversation or several, by the target's chat template.

        Args:
            messages: dictionaries with `role` and `content`, or a list of conversations.
            tools: descriptions of tools, for the chat template.
            params, stream: as for `generate`, which has the results and errors too.
        """
        return self._complete(asked_conversations(self._open(), messages, params, tools), stream)

    # ---- work -----------------------------------------------------------------------------

    def _open(self) -> Target:
        """The target, while the LLM is open."""
        return self.engine.target

    def _complete(self, asked: Asked, stream: bool) -> Any:
        requests = []
        for number, (ids, params) in enumerate(asked.prompts):
            with asked.naming(number):
                requests.append(self.engine.request(ids, params))
        if stream:
            check_one(asked)
            return self._pieces(requests[0])
        with self._running(requests):
            for request in requests:
                while request.finish is None:
                    self._step()
            outputs = [request_output(r, self._steps[r.id], self.target) for r in requests]
        return outputs[0] if asked.one else outputs

    def _pieces(self, request: Request) -> Iterator[TextPiece]:
        pieces, done = Pieces(self.target, self._texts), 0
        with self._running([request]):
            steps = self._steps[request.id]
            while request.finish is None or done < len(steps):
                if done == len(steps):
                    self._step()
                    continue
                done += 1
                yield pieces.take(steps[done - 1])

    @contextmanager
    def _running(self, requests: Sequence[Request]) -> Iterator[None]:
        """The requests are in line, and end with the block."""
        engine = self.engine
        try:
            for request in requests:
                self._steps[request.id] = []
                engine.submit_request(request)
            yield
        finally:  # Ctrl-C, an error or a loop that was left must not keep slots
            for request in requests:
                self._steps.pop(request.id, None)
                if request.finish is None or request.slot is not None:
                    engine.cancel(request)

    def _step(self) -> None:
        """One step; each request gets what is its own, whoever asks for the step."""
        for output in self.engine.step():
            if (steps := self._steps.get(output.request.id)) is not None:
                steps.append(output)


def check_one(asked: Asked) -> None:
    """Refuse to stream several prompts.

    Raises:
        RequestError: there are several.
    """
    if not asked.one:
        raise RequestError(
            "A stream is of one prompt",
            found=f"a list of {len(asked.prompts)}",
            fix="Stream them one by one, or at a time with AsyncLLM",
        )
