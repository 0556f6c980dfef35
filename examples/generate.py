"""Answer a prompt through the Engine API, with a drafter where there is one.

python examples/generate.py [PROMPT] [DRAFTER_FOLDER]

The target is the default one, fetched on first use. Without a folder the drafter that comes with
this project drafts; where there is none, the target decodes plainly.
"""

import sys
import time

from dspark.core import SamplingParams, TokenKind
from dspark.drafters.checkpoint import load_drafter
from dspark.engine.engine import Engine
from dspark.engine.stats import accepted_length
from dspark.targets.default_target import DEFAULT_TARGET, shipped_drafter
from dspark.targets.detokenize import TextStream
from dspark.targets.target import load_target


def main(prompt: str, folder: str | None) -> None:
    target = load_target(DEFAULT_TARGET)
    where = folder or shipped_drafter(DEFAULT_TARGET)
    drafter = load_drafter(where, target) if where else None
    ids = target.encode(prompt)
    params = SamplingParams(temperature=0, max_new_tokens=120)
    engine = Engine(target, drafter, slots=1, max_len=len(ids) + params.max_new_tokens)

    text, start = TextStream(target.tokenizer), time.perf_counter()
    kinds: list[TokenKind] = []
    for output in engine.stream(ids, params):
        request = output.request
        kinds += output.kinds
        print("".join(text.push(token) for token in output.token_ids), end="", flush=True)
    print(text.rest())

    speed = len(request.output_ids) / (time.perf_counter() - start)
    print(f"\n{len(kinds)} tokens, {speed:.0f} tokens/s, finished by {request.finish.value}")
    if drafter is None:
        print("no drafter: plain decoding")
    else:
        accepted = kinds.count(TokenKind.ACCEPTED)
        print(f"{accepted} were accepted drafts, accepted_length {accepted_length([request]):.2f}")


if __name__ == "__main__":
    arguments = [*sys.argv[1:], None, None][:2]
    main(arguments[0] or "Explain in two sentences why the sky is blue.", arguments[1])
