"""Complete three prompts at once, each printed as it arrives.

python examples/stream_async.py [DRAFTER]

The target is the default one, fetched on first use. DRAFTER is a shipped name, a checkpoint folder
or none; by default the drafter that ships for this target.
"""

import asyncio
import sys

from dspark import AsyncLLM, SamplingParams

PROMPTS = [
    "Explain in one sentence why the sky is blue.",
    "Name three fruits.",
    "What is seven times eight?",
]


async def main(drafter: str = "auto") -> None:
    params = SamplingParams(temperature=0, max_new_tokens=40)

    async def show(number: int, prompt: str) -> str:
        async for piece in llm.generate(prompt, params, stream=True):
            print(f"{number}: {piece.text!r}", flush=True)
        output = piece.output
        print(f"{number}: {len(output.token_ids)} tokens, finished by {output.finish_reason}")
        return output.text

    async with AsyncLLM("smollm2-135m", drafter=drafter, slots=len(PROMPTS)) as llm:
        texts = await asyncio.gather(*(show(n, prompt) for n, prompt in enumerate(PROMPTS, 1)))
    for prompt, text in zip(PROMPTS, texts, strict=True):
        print(f"\n{prompt}\n{text.strip()}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
