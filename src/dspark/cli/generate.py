"""`dspark generate`: answer one prompt."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.api.names import AUTO
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
)
from dspark.cli.texts import given_text
from dspark.core import DEFAULT_RULE, SamplingParams
from dspark.errors import ConfigError
from dspark.fetching.known import DEFAULT_TARGET

if TYPE_CHECKING:
    from dspark.api.outputs import RequestOutput


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
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens
    )
    if parse_special and not raw:
        raise ConfigError("--parse-special is for bare texts", fix="Add --raw, or leave it out")
    prompt = given_text(prompt)
    check_prompt(prompt)
    from dspark.api.llm import LLM
    from dspark.api.models import load_models

    model, draft_model = load_models(target, drafter, dtype, weights=weights, threads=threads)
    ids = model.encode(prompt, raw=raw, parse_special=parse_special)
    room = len(ids) + max_new_tokens
    with LLM(
        model,
        drafter=draft_model,
        policy=policy or AUTO,
        slots=1,
        max_len=room,
        verification=verification,
    ) as llm:
        start = time.perf_counter()
        for piece in llm.generate(ids, params, stream=True):
            if not as_json:
                print(piece.text, end="", flush=True)
        seconds = time.perf_counter() - start
    assert piece.output is not None
    _show(piece.output, seconds, as_json, drafted=draft_model is not None)


def _show(output: RequestOutput, seconds: float, as_json: bool, drafted: bool) -> None:
    """The whole completion as JSON, or what a person reads after it."""
    length, rate = output.accepted_length, len(output.token_ids) / seconds
    if as_json:
        answer = {
            "text": output.text,
            "token_ids": output.token_ids,
            "accepted_length": None if length is None else round(length, 4),
            "tokens_per_s": round(rate, 2),
        }
        print(json.dumps(answer))
        return
    print(flush=True)
    note = f"{len(output.token_ids)} tokens, {rate:.0f} tokens/s"
    if drafted and length is not None:
        note += f", accepted_length {length:.2f}"
    print(note, file=sys.stderr)
