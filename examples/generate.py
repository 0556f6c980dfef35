"""Complete a prompt as it comes, with a drafter where there is one.

python examples/generate.py [PROMPT] [DRAFTER]

The target is the default one, fetched on first use. DRAFTER is a shipped name, a checkpoint folder
or none; by default the drafter that ships for this target.
"""

import sys
import time

from dspark import LLM, SamplingParams


def main(prompt: str = "Explain in two sentences why the sky is blue.", drafter: str = "auto"):
    params = SamplingParams(temperature=0, max_new_tokens=120)
    with LLM("smollm2-135m", drafter=drafter) as llm:
        start = time.perf_counter()
        for piece in llm.chat([{"role": "user", "content": prompt}], params, stream=True):
            print(piece.text, end="", flush=True)
        seconds = time.perf_counter() - start

    output = piece.output  # the last piece has the whole completion
    count = len(output.token_ids)
    print(f"\n\n{count} tokens, {count / seconds:.0f} tokens/s, finished by {output.finish_reason}")
    length = output.accepted_length
    print(f"{output.accepted} of them were accepted drafts, accepted_length {length:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
