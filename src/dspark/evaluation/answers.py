"""One prompt answered one way, with the seconds it took; and where two answers part."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dspark.attention.kv_cache import Rows
from dspark.core import Request, SamplingParams, StepOutput
from dspark.engine.engine import Engine
from dspark.targets.target import Target


@dataclass(slots=True)
class Answer:
    """One prompt's answer one way: the request with its rounds, and the seconds it took."""

    request: Request
    seconds: float


def answer(
    engine: Engine,
    ids: list[int],
    params: SamplingParams,
    show: Callable[[StepOutput], None] = lambda output: None,
) -> Answer:
    """Answer one prompt; showing tokens is not on the clock."""
    stream = engine.stream(ids, params)
    seconds, request = 0.0, None
    while True:
        start = time.perf_counter()
        output = next(stream, None)
        seconds += time.perf_counter() - start
        if output is None:
            break
        request = output.request
        show(output)
    assert request is not None
    return Answer(request, seconds)


def answer_elsewhere(
    generate: Callable[[], list[int]], ids: list[int], params: SamplingParams
) -> Answer:
    """The answer of something that is not our engine, on the same clock.

    Args:
        generate: gives the new token ids, the stop token included.
    """
    start = time.perf_counter()
    new_ids = generate()
    seconds = time.perf_counter() - start
    request = Request(0, ids, params)
    request.output_ids = new_ids
    return Answer(request, seconds)


def answer_with_transformers(
    module: Any, target: Target, ids: list[int], params: SamplingParams, **options: Any
) -> Answer:
    """Greedy ``generate`` of the Hugging Face module, as its users call it.

    Args:
        options: further ones of ``generate``.
    """

    def generate() -> list[int]:
        tokens = torch.tensor([ids], device=module.device)
        with torch.inference_mode():
            out = module.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=params.max_new_tokens,
                eos_token_id=sorted(target.stop_ids),
                pad_token_id=min(target.stop_ids),
                **options,
            )
        new_ids: list[int] = out[0, len(ids) :].tolist()
        return new_ids

    return answer_elsewhere(generate, ids, params)


def difference(target: Target, prompt_id: str, plain: Request, drafted: Request) -> dict[str, Any]:
    """Where two answers part, and how far apart the target holds the two tokens.

    ``logit_gap`` is the target's best logit there minus its second best, from one pass over the
    common text; in float32 only a gap below 1e-4 excuses a difference.
    """
    pairs = zip(plain.output_ids, drafted.output_ids, strict=False)
    shorter = min(len(plain.output_ids), len(drafted.output_ids))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    prefix = [*plain.prompt_ids, *plain.output_ids[:at]]
    cache = target.new_cache(1, len(prefix))
    last, _ = target.forward(Rows.build([(0, 0, prefix)], str(target.device)), cache)
    best, second = target.logits(last[-1:])[0].float().topk(2).values.tolist()
    gap = {"logit_gap": round(best - second, 6), "best_logit": round(best, 4)}
    return {"prompt": prompt_id, "position": at, **gap}
