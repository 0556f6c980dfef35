"""Which prompts are answered for rounds, on which side of the split, and with what seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dspark.core import Request, SamplingParams
from dspark.data import files
from dspark.data.bad_rows import BadRows
from dspark.data.prompt_rows import prompt_ids
from dspark.data.prompts import Prompt, load_prompts, spread
from dspark.engine.engine import Engine
from dspark.errors import DataError, PromptTooLongError

MAX_PROMPT = 768  # tokens; longer prompts are skipped, since caches are made for the longest


def choose_prompts(
    data: Sequence[Path],
    exclude: Sequence[Path] = (),
    limit: int | None = None,
    seed: int = 0,
    only: Sequence[Path] = (),
    bad_rows: BadRows | None = None,
) -> list[Prompt]:
    """Prompts of several files without those trained on, shuffled, domains in turn.

    Args:
        exclude: JSON-lines files whose rows carry the `id` of a prompt to leave out.
        only: files of the same kind; where given, prompts that they do not name are left out.
        limit: keep this many; None keeps all.
        bad_rows: what to do with rows that cannot be used; None stops at the first.

    Raises:
        DataError: a file is missing or damaged, two prompts share an id, or none is left.
    """
    bad_rows = bad_rows or BadRows()
    prompts: dict[str, Prompt] = {}
    for path in data:
        for prompt in load_prompts(path, bad_rows=bad_rows):
            if prompts.setdefault(prompt.id, prompt).conversation != prompt.conversation:
                raise DataError(
                    f"two prompts have the id {prompt.id}",
                    found=f"the second one in {path}",
                    fix="Give each prompt an id of its own",
                )
    unwanted = {name for path in exclude for name in _ids(path, bad_rows)}
    if only:
        unwanted |= prompts.keys() - {name for path in only for name in _ids(path, bad_rows)}
    left = [prompt for name, prompt in prompts.items() if name not in unwanted]
    if not left:
        raise DataError(
            "no prompt is left to collect rounds with",
            found=f"{len(prompts)} prompts, all of them in the files to exclude"
            + (", or in none of those to keep" if only else ""),
            fix="Give the files that these prompts' ids are in"
            if only
            else "Give prompts that the drafter was not trained on",
        )
    random.Random(seed).shuffle(left)
    return spread(left, limit or len(left))


def _ids(path: Path, bad_rows: BadRows) -> Iterator[str]:
    for line, row in files.read_jsonl(path, bad_rows):
        if "id" in row:
            yield str(row["id"])
            continue
        where = files.place(path, line)
        bad_rows.meet(DataError(f"{where} has no id", fix="Give a file of answers"), where)


def in_check(prompt_id: str, share: float) -> bool:
    """Whether a prompt is kept out of fitting; `share` of the prompts are, on average.

    It depends on nothing but the id and the share, and a larger share keeps what a smaller one
    did: a table fitted in one run is never judged on its own prompts in another.
    """
    return random.Random(prompt_id).random() < share


def submit(
    engine: Engine, prompt: Prompt, params: SamplingParams, seed: int, bad_rows: BadRows
) -> Request | None:
    """Have a prompt answered with a seed of its own, which makes the answer depend on nothing but
    the prompt and `seed`; None for one that is too long, or that is skipped as a bad row.

    Raises:
        DataError: the target cannot take it, and bad rows stop the work.
    """
    try:
        ids = prompt_ids(engine.target, prompt, bad_rows)
    except PromptTooLongError:
        return None
    if not ids or len(ids) + params.max_new_tokens > engine.max_len:
        return None
    own = random.Random(f"{seed} {prompt.id}").getrandbits(62)
    return engine.submit(ids, replace(params, seed=own))
