"""Which temperature, random numbers and wording a prompt gets: functions of its id alone.

An interrupted run that is taken up again therefore gives the rows it would have given anyway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from dspark.core import SamplingParams
from dspark.data.prompt_rows import Message
from dspark.data.prompts import Prompt
from dspark.errors import ConfigError, RequestError

BOXED_SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class MixturePart:
    """A share of the prompts that is sampled alike; shares need not add up to one."""

    share: float
    temperature: float
    top_p: float = 1.0


Mixture = Sequence[MixturePart]
DEFAULT_MIXTURE = (MixturePart(0.35, 0.0), MixturePart(0.25, 0.6, 0.95), MixturePart(0.4, 1.0))


def parse_mixture(text: str) -> list[MixturePart]:
    """Read ``temperature[@top_p]:share,…``, such as "0:0.35,0.6@0.95:0.25,1:0.4".

    Raises:
        ConfigError: for anything else, or values out of range.
    """
    parts = []
    for item in text.split(","):
        how, colon, share = item.partition(":")
        temperature, at, top_p = how.partition("@")
        try:
            part = MixturePart(
                float(share) if colon else 1.0,
                float(temperature),
                float(top_p) if at else 1.0,
            )
            SamplingParams(temperature=part.temperature, top_p=part.top_p)
        except (ValueError, RequestError) as error:
            raise ConfigError(
                "Cannot read a temperature", found=item, fix="Write 0:0.35,0.6@0.95:0.25,1:0.4"
            ) from error
        if not 0 < part.share < float("inf"):
            raise ConfigError("A share must be above 0", found=item)
        parts.append(part)
    return parts


def digest(seed: int, purpose: str, name: str) -> int:
    """64 bits that are the same on every machine."""
    text = f"{seed}:{purpose}:{name}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def sampling_params(
    prompt_id: str, mixture: Mixture, max_new_tokens: int, seed: int, turn: int = 0
) -> SamplingParams:
    """How a prompt is completed; turns of a conversation differ in their draws alone."""
    point = _unit(seed, "temperature", prompt_id) * sum(part.share for part in mixture)
    chosen = mixture[-1]
    for part in mixture:
        point -= part.share
        if point < 0:
            chosen = part
            break
    return SamplingParams(
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        seed=digest(seed, "draws", f"{prompt_id}#{turn}" if turn else prompt_id) >> 1,
        max_new_tokens=max_new_tokens,
    )


def worded(prompt: Prompt, suffix_share: float, seed: int) -> list[Message]:
    """The prompt's messages, some math prompts asking for a boxed final answer."""
    if prompt.domain != "math" or _unit(seed, "suffix", prompt.id) >= suffix_share:
        return prompt.messages
    *before, last = prompt.messages
    if last["role"] != "user":
        return prompt.messages
    return [*before, {**last, "content": last["content"] + BOXED_SUFFIX}]


def _unit(seed: int, purpose: str, name: str) -> float:
    return (digest(seed, purpose, name) >> 11) / 2**53  # as many bits as a float holds
