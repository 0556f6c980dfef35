"""`dspark generate`: answer one prompt."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

import typer

from dspark.cli.checks import check_prompt
from dspark.cli.common import (
    DEFAULT_DRAFTER,
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    DrafterOption,
    DtypeOption,
    LongestAnswerOption,
    PolicyOption,
    TargetOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    VerificationOption,
    WeightsOption,
    load_models,
)
from dspark.cli.texts import given_text
from dspark.core import DEFAULT_RULE, SamplingParams
from dspark.errors import ConfigError
from dspark.targets.default_target import DEFAULT_TARGET


def command(
    prompt: Annotated[str, typer.Argument(help="What to answer; - reads standard input.")],
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = DEFAULT_DRAFTER,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the bare text; no chat template.")
    ] = False,
    parse_special: Annotated[
        bool,
        typer.Option(
            "--parse-special",
            help="With --raw, read spellings of control tokens, such as <|im_end|>, as those "
            "tokens; they are text otherwise.",
        ),
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    max_new_tokens: LongestAnswerOption = 256,
    policy: PolicyOption = None,
    verification: VerificationOption = DEFAULT_RULE,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Answer one prompt, streaming, with the target's own text at the drafter's speed.

    Examples:

        dspark generate "Why is the sky blue?"

        dspark generate "def fibonacci(n):" --raw --drafter none

        dspark generate "Tell me a story." --temperature 1 --seed 7 --json
    """
    params = SamplingParams(temperature, top_k, top_p, seed, max_new_tokens)
    if parse_special and not raw:
        raise ConfigError("--parse-special is for bare texts", fix="Add --raw, or leave it out")
    prompt = given_text(prompt)
    check_prompt(prompt)
    from dspark.engine.engine import Engine
    from dspark.engine.stats import accepted_length
    from dspark.targets.detokenize import TextStream

    model, draft_model = load_models(target, drafter, dtype, threads, weights)
    ids = model.encode(prompt, raw=raw, parse_special=parse_special)
    room = min(len(ids) + max_new_tokens, model.max_positions)
    engine = Engine(model, draft_model, policy, slots=1, max_len=room, verification=verification)
    text, start = TextStream(model.tokenizer), time.perf_counter()
    request = None
    for output in engine.stream(ids, params):
        request = output.request
        if not as_json:
            print("".join(text.push(i) for i in output.token_ids), end="", flush=True)
    seconds = time.perf_counter() - start
    assert request is not None
    length = accepted_length([request])
    rate = len(request.output_ids) / seconds
    if as_json:
        answer = {
            "text": model.decode(request.output_ids),
            "token_ids": request.output_ids,
            "accepted_length": None if length != length else round(length, 4),
            "tokens_per_s": round(rate, 2),
        }
        print(json.dumps(answer))
        return
    print(text.rest(), flush=True)
    note = f"{len(request.output_ids)} tokens, {rate:.0f} tokens/s"
    if draft_model is not None and length == length:
        note += f", accepted_length {length:.2f}"
    print(note, file=sys.stderr)
