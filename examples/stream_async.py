"""Answer three prompts at once through the AsyncEngine API, each printed as it arrives.

python examples/stream_async.py [DRAFTER_FOLDER]

The target is the default one, fetched on first use. Without a folder the drafter that comes with
this project drafts; where there is none, the target decodes plainly.
"""

import asyncio
import sys

import dspark
from dspark.targets.default_target import DEFAULT_TARGET, shipped_drafter
from dspark.targets.detokenize import TextStream

PROMPTS = [
    "Explain in one sentence why the sky is blue.",
    "Name three fruits.",
    "What is seven times eight?",
]


async def main(folder: str | None) -> None:
    target = dspark.load_target(DEFAULT_TARGET)
    where = folder or shipped_drafter(DEFAULT_TARGET)
    drafter = dspark.load_drafter(where, target) if where else None
    params = dspark.SamplingParams(temperature=0, max_new_tokens=40)

    async def show(number: int, prompt: str) -> str:
        text, parts = TextStream(target.tokenizer), []
        async for output in engine.stream(target.encode(prompt), params):
            parts.append("".join(text.push(token) for token in output.token_ids))
            print(f"{number}: {parts[-1]!r}", flush=True)
            request = output.request
        print(f"{number}: {len(request.output_ids)} tokens, finished by {request.finish.value}")
        return "".join(parts) + text.rest()

    async with dspark.AsyncEngine(dspark.Engine(target, drafter, slots=len(PROMPTS))) as engine:
        answers = await asyncio.gather(*(show(n, prompt) for n, prompt in enumerate(PROMPTS, 1)))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        print(f"\n{prompt}\n{answer.strip()}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
