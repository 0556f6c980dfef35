"""What a run completes prompts with: the engine, or plain decoding as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch

from dspark.core import Request, SamplingParams
from dspark.engine.engine import Engine
from dspark.errors import ConfigError
from dspark.regeneration.graph_decoder import suits
from dspark.regeneration.plain_batch import PlainBatch
from dspark.targets.target import Target

Decoder = Literal["auto", "engine", "graph"]
_READY = 16  # requests kept in line, so that slots never wait for the tokenizer
_MEMORY_SHARE = 0.7  # of a GPU's free memory goes to keys and values


class PromptBatch(Protocol):
    """Requests that wait or run; true while there are any."""

    max_len: int

    def __bool__(self) -> bool: ...

    @property
    def wanted(self) -> int:
        """Requests to submit now."""

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
        """Put a prompt in line."""

    def step(self, meanwhile: Callable[[], None]) -> tuple[int, list[Request]]:
        """Move on, with a chance to submit; tokens drawn, requests finished."""


class EngineBatch:
    """The engine without a drafter: any target on any device."""

    def __init__(self, target: Target, slots: int, max_len: int) -> None:
        self._engine = Engine(target, policy="off", slots=slots, max_len=max_len)
        self.max_len = self._engine.max_len

    def __bool__(self) -> bool:
        return bool(self._engine.queue)

    @property
    def wanted(self) -> int:
        return max(_READY - self._engine.queue.waiting, 0)

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
        return self._engine.submit(prompt_ids, params)

    def step(self, meanwhile: Callable[[], None]) -> tuple[int, list[Request]]:
        meanwhile()
        outputs = self._engine.step()
        finished = [output.request for output in outputs if output.finished]
        return sum(len(output.token_ids) for output in outputs), finished


def make_batch(target: Target, slots: int, max_len: int, decoder: Decoder = "auto") -> PromptBatch:
    """Graphs where target and device suit them, else the engine.

    On a GPU there are no more slots than its free memory holds keys and values for.

    Raises:
        ConfigError: "graph" for a target that has no lean forward or has sliding windows; sizes
            too small.
    """
    if slots < 1 or max_len < 2:
        raise ConfigError("Too small", found=f"slots {slots}, max_len {max_len}")
    if target.device.type == "cuda":
        length = min(max_len, target.max_positions)
        free, _ = torch.cuda.mem_get_info(target.device)
        fitting = int(free * _MEMORY_SHARE) // (target.position_bytes * length)
        slots = max(1, min(slots, fitting))
    if decoder == "engine" or (decoder == "auto" and target.device.type != "cuda"):
        return EngineBatch(target, slots, max_len)
    if suits(target):
        return PlainBatch(target, slots, max_len)
    if decoder == "graph":
        raise ConfigError(
            "This target cannot run as a CUDA graph",
            found=target.spec.model_type,
            fix="Leave the choice to the program",
        )
    return EngineBatch(target, slots, max_len)
