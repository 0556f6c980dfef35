"""Log-probabilities that requests ask for are the target's own, whatever was drafted."""

from __future__ import annotations

import pytest
import torch

from dspark.core import SamplingParams, StepOutput, TokenLogprobs
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.errors import RequestError
from dspark.targets.target import Target

PROMPTS = [[1, 20, 30], [9], list(range(40, 65)), [50, 51] * 6]


def told(engine: Engine, all_params: list[SamplingParams]) -> list[list[TokenLogprobs] | None]:
    """What each request was told, joined over its steps."""
    pairs = zip(PROMPTS, all_params, strict=True)
    requests = [engine.submit(prompt, params) for prompt, params in pairs]
    outputs: list[StepOutput] = []
    while engine.queue:
        outputs += engine.step()
    joined = []
    for request in requests:
        own = [output for output in outputs if output.request is request]
        parts = [output.logprobs for output in own]
        if request.params.logprobs is None:
            assert parts == [None] * len(parts)
            joined.append(None)
            continue
        for output in own:
            assert output.logprobs is not None
            assert len(output.logprobs) == len(output.token_ids)
        joined.append([one for part in parts for one in part or ()])
    return joined


@pytest.mark.parametrize(
    ("policy", "rule"), [("off", "token"), ("fixed:3", "token"), ("fixed:3", "block")]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_they_are_the_target_s_own(
    policy: str, rule: str, temperature: float, target: Target, drafter: Drafter
) -> None:
    asked = [3, None, 0, 1]
    params = [
        SamplingParams(temperature=temperature, max_new_tokens=9, seed=4, logprobs=count)
        for count in asked
    ]
    used = None if policy == "off" else drafter
    engine = Engine(target, used, policy, slots=3, verification=rule)
    texts = [r.output_ids for r in engine.generate(PROMPTS, params[1])]
    for prompt, text, count, got in zip(PROMPTS, texts, asked, told(engine, params), strict=True):
        if count is None:
            continue
        assert got is not None
        last_TD, _ = target.states([prompt + text], ())
        logs = torch.log_softmax(target.logits(last_TD[len(prompt) - 1 : -1]).float(), -1)
        assert [one.logprob for one in got] == pytest.approx(
            [float(log[token]) for log, token in zip(logs, text, strict=True)], abs=1e-4
        )
        for log, one in zip(logs, got, strict=True):
            best = log.topk(count)
            assert [token for token, _ in one.top] == best.indices.tolist()
            assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_too_many() -> None:
    with pytest.raises(RequestError, match="logprobs is out of range"):
        SamplingParams(logprobs=21)
