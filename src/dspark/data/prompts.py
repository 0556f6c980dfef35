"""Prompts: read from files, from a Hugging Face dataset, or bundled with the package.

`data.prompt_rows` says what a row holds.
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from dspark.data.bad_rows import BadRows
from dspark.data.files import find_data, place, read_jsonl
from dspark.data.prompt_rows import Prompt, prompt_from_row
from dspark.errors import ConfigError, DataError

__all__ = [
    "Prompt",
    "load_demo_prompts",
    "load_prompts",
    "prompt_from_row",
    "spread",
    "spread_prompts",
]

# owner/name, with the split after a colon; file names are told apart by their suffix.
_DATASET_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>[\w.-]+))?")
_FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".txt", ".csv", ".parquet")


def load_prompts(
    source: str | Path,
    limit: int | None = None,
    seed: int | None = None,
    bad_rows: BadRows | None = None,
) -> list[Prompt]:
    """Read prompts from a JSON-lines file or a Hugging Face dataset.

    Args:
        source: a path, a name under the data folder, or `owner/name[:split]` of a dataset
            (split "train" unless given). A file that exists wins over a dataset.
        limit: keep this many; None keeps all. A source with fewer gives what it has.
        seed: shuffle with this seed before the limit is applied; None keeps the order and stops
            reading at the limit.
        bad_rows: what to do with rows that are no prompts; None stops at the first.

    Returns:
        The prompts, ids distinct. Repeated rows of a dataset are dropped, since nobody can edit
        them there; in a file they are an error.

    Raises:
        DataError: the source is missing, damaged, empty, has an id twice, or is a dataset that
            cannot be loaded here.
        ConfigError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError("limit is out of range", found=limit, fix="Use 1 or more")
    stop = limit if seed is None else None
    bad_rows = bad_rows or BadRows()
    dataset = _dataset_id(source)
    if dataset is None:
        prompts = _distinct(find_data(source), stop, bad_rows)
    else:
        prompts = _from_dataset(*dataset, stop, bad_rows)
    if seed is not None:
        random.Random(seed).shuffle(prompts)
    return prompts[:limit]


def load_demo_prompts() -> list[Prompt]:
    """The prompts that come with the package: ten each of math, code and chat."""
    bundled = resources.files("dspark.data").joinpath("demo_prompts.jsonl")
    with resources.as_file(bundled) as path:
        return _distinct(path, None, BadRows())


def spread(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """The first `n` prompts taken in turn from each data set of each domain.

    They go in order of appearance and prompts within one keep their order; one that runs out is
    passed over. Fewer than `n` prompts give all of them.

    Raises:
        ConfigError: `n` is below 0.
    """
    if n < 0:
        raise ConfigError("the number of prompts is out of range", found=n, fix="Use 0 or more")
    groups: dict[tuple[str, str], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.domain, prompt.dataset), []).append(prompt)
    taken: list[Prompt] = []
    for turn in range(max(map(len, groups.values()), default=0)):
        taken += [group[turn] for group in groups.values() if turn < len(group)]
        if len(taken) >= n:
            break
    return taken[:n]


def spread_prompts(
    sources: Sequence[str | Path] | None = None,
    limit: int | None = None,
    bad_rows: BadRows | None = None,
) -> list[Prompt]:
    """The prompts of all sources, or the bundled ones without any; `spread`, the first ``limit``.

    Raises:
        DataError, ConfigError: see `load_prompts` and `spread`.
    """
    prompts = [p for source in sources or () for p in load_prompts(source, bad_rows=bad_rows)]
    prompts = prompts if sources else load_demo_prompts()
    return spread(prompts, len(prompts) if limit is None else limit)


def _distinct(path: Path, stop: int | None, bad_rows: BadRows) -> list[Prompt]:
    """The first `stop` prompts of a file; an id that comes twice is refused."""
    prompts: list[Prompt] = []
    line_of: dict[str, int] = {}
    for line, row in read_jsonl(path, bad_rows):
        try:
            prompt = prompt_from_row(row, place(path, line))
            if prompt.id in line_of:
                raise DataError(
                    f"{path}: lines {line_of[prompt.id]} and {line} have the same prompt id",
                    found=prompt.id,
                    fix="Give each prompt an id of its own, or remove the repeated line",
                )
        except DataError as error:
            bad_rows.meet(error, place(path, line))
            continue
        line_of[prompt.id] = line
        prompts.append(prompt)
        if len(prompts) == stop:
            break
    if not prompts:
        raise DataError(f"{path} has no prompt that can be used", found=bad_rows.summary())
    return prompts


def _dataset_id(source: str | Path) -> tuple[str, str] | None:
    """(name, split) when `source` can only be meant as a dataset, else None."""
    text = str(source)
    match = _DATASET_ID.fullmatch(text)
    if isinstance(source, Path) or match is None or text.startswith("."):
        return None
    if text.endswith(_FILE_SUFFIXES):
        return None
    try:
        find_data(text)
    except DataError:
        return match["name"], match["split"] or "train"
    return None


def _from_dataset(name: str, split: str, stop: int | None, bad_rows: BadRows) -> list[Prompt]:
    """The first `stop` distinct prompts of a dataset, which is streamed when `stop` is given."""
    prompts: dict[str, Prompt] = {}
    for number, row in enumerate(_dataset_rows(name, split, stop is not None), start=1):
        where = f"{name}:{split}, row {number}"
        try:
            prompt = prompt_from_row(dict(row), where)
        except DataError as error:
            bad_rows.meet(error, where)
            continue
        prompts.setdefault(prompt.id, prompt)
        if len(prompts) == stop:
            break
    if not prompts:
        found = bad_rows.summary() or None
        what = "has no prompt that can be used" if found else "is empty"
        raise DataError(f"dataset {name}:{split} {what}", found=found, fix="Try another split")
    return list(prompts.values())


def _dataset_rows(name: str, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"no file is called {name!r}, and as a Hugging Face dataset it needs the package "
            "datasets, which is not installed",
            fix="Run `pip install datasets`, or check the file name",
        ) from error
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(
            name, split=split, streaming=streaming
        )
        # Streaming downloads here rather than above, so the loop stays inside the guard.
        yield from rows
    except Exception as error:  # hub, network and parser each raise errors of their own kind
        raise DataError(
            f"cannot load the Hugging Face dataset {name}:{split}",
            found=f"{type(error).__name__}: {error}",
            fix="Check the name, the split (owner/name:split), the network and your access, "
            "or give a file",
        ) from error
