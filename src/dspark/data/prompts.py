"""Prompts: read from files, from a Hugging Face dataset, or bundled with the package.

A row holds its text in one of three fields:

    {"prompt": "…"}                                   one user message
    {"turns": ["…", "…"]}                             the first turn only; the rest is not used
    {"messages": [{"role": "user", "content": "…"}]}  a conversation up to its last user message

`id`, `domain`, `source`, `dataset` and `license` are optional texts; other fields are ignored.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from dspark.data.files import find_data, place, read_jsonl
from dspark.errors import ConfigError, DataError

ROLES = ("system", "user", "assistant")

# owner/name, with the split after a colon; file names are told apart by their suffix.
_DATASET_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>[\w.-]+))?")
_FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".txt", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready for a chat template.

    Attributes:
        id: unique within its source; made from the messages when the row has none.
        messages: `{"role", "content"}` pairs; the last one is the user's.
        domain: what kind of work it is, such as "math"; "" when unknown.
        source: where the text comes from; "" when unknown.
        dataset: evaluation set it belongs to; "" when none.
        license: of the text; "" when unknown.
    """

    id: str
    messages: list[dict[str, str]]
    domain: str = ""
    source: str = ""
    dataset: str = ""
    license: str = ""

    @property
    def text(self) -> str:
        """What the user said last."""
        return self.messages[-1]["content"]


def prompt_from_row(row: dict[str, Any], where: str = "the row") -> Prompt:
    """Build a prompt from one JSON object; `where` names it in messages.

    Raises:
        DataError: no text field, or a field of the wrong type.
    """
    messages = _messages(row, where)
    given = row.get("id")
    if given is None:
        name = _content_id(messages)
    elif isinstance(given, (str, int)) and not isinstance(given, bool) and str(given).strip():
        name = str(given)
    else:
        raise DataError(f"{where}: id must be a text or a whole number", found=repr(given))
    labels = {}
    for key in ("domain", "source", "dataset", "license"):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {key} must be a text", found=type(value).__name__)
        labels[key] = value or ""
    return Prompt(name, messages, **labels)


def load_prompts(
    source: str | Path, limit: int | None = None, seed: int | None = None
) -> list[Prompt]:
    """Read prompts from a JSON-lines file or a Hugging Face dataset.

    Args:
        source: a path, a name under the data folder, or `owner/name[:split]` of a dataset
            (split "train" unless given). A file that exists wins over a dataset.
        limit: keep this many; None keeps all. A source with fewer gives what it has.
        seed: shuffle with this seed before the limit is applied; None keeps the order and stops
            reading at the limit.

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
    dataset = _dataset_id(source)
    if dataset is None:
        prompts = _distinct(find_data(source), stop)
    else:
        prompts = _from_dataset(*dataset, stop)
    if seed is not None:
        random.Random(seed).shuffle(prompts)
    return prompts[:limit]


def load_demo_prompts() -> list[Prompt]:
    """The prompts that come with the package: ten each of math, code and chat."""
    bundled = resources.files("dspark.data").joinpath("demo_prompts.jsonl")
    with resources.as_file(bundled) as path:
        return _distinct(path, None)


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
    sources: Sequence[str | Path] | None = None, limit: int | None = None
) -> list[Prompt]:
    """The prompts of all sources, or the bundled ones without any; `spread`, the first ``limit``.

    Raises:
        DataError, ConfigError: see `load_prompts` and `spread`.
    """
    prompts = [p for source in sources or () for p in load_prompts(source)]
    prompts = prompts if sources else load_demo_prompts()
    return spread(prompts, len(prompts) if limit is None else limit)


def _messages(row: dict[str, Any], where: str) -> list[dict[str, str]]:
    if row.get("prompt") is not None:
        return [{"role": "user", "content": _text(row["prompt"], f"{where}: prompt")}]
    if row.get("turns") is not None:
        turns = row["turns"]
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{where}: turns must be a list of texts, not empty", found=repr(turns))
        return [{"role": "user", "content": _text(turns[0], f"{where}: turns[0]")}]
    if row.get("messages") is not None:
        return _conversation(row["messages"], where)
    raise DataError(
        f"{where} has no prompt",
        found=f"fields {', '.join(row) or 'none'}",
        fix='Give a "prompt" (text), "turns" (list of texts) or "messages" (role and content)',
    )


def _conversation(value: object, where: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages must be a list, not empty", found=repr(value))
    messages = []
    for index, message in enumerate(value):
        here = f"{where}: messages[{index}]"
        if not isinstance(message, dict):
            raise DataError(f"{here} must be an object", found=type(message).__name__)
        if message.get("role") not in ROLES:
            raise DataError(
                f"{here} has an unknown role",
                found=repr(message.get("role")),
                fix=f"Use one of {', '.join(ROLES)}",
            )
        content = _text(message.get("content"), f"{here}: content")
        messages.append({"role": str(message["role"]), "content": content})
    while messages and messages[-1]["role"] != "user":  # the answer is what we are going to make
        messages.pop()
    if not messages:
        raise DataError(
            f"{where}: messages holds nothing from the user", fix='Add a "user" message'
        )
    return messages


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} must be a text", found=type(value).__name__)
    if not value.strip():
        raise DataError(f"{where} is empty", fix="Write something or take the row out")
    return value


def _content_id(messages: list[dict[str, str]]) -> str:
    """A name that follows from the messages alone, the same on every machine and in every run."""
    canonical = json.dumps(messages, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    # A lone surrogate, which JSON can spell, has no UTF-8 form; any fixed bytes for it will do.
    return "prompt-" + hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()[:16]


def _distinct(path: Path, stop: int | None) -> list[Prompt]:
    """The first `stop` prompts of a file; an id that comes twice is refused."""
    prompts: list[Prompt] = []
    line_of: dict[str, int] = {}
    for line, row in islice(read_jsonl(path), stop):
        prompt = prompt_from_row(row, place(path, line))
        if prompt.id in line_of:
            raise DataError(
                f"{path}: lines {line_of[prompt.id]} and {line} have the same prompt id",
                found=prompt.id,
                fix="Give each prompt an id of its own, or remove the repeated line",
            )
        line_of[prompt.id] = line
        prompts.append(prompt)
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


def _from_dataset(name: str, split: str, stop: int | None) -> list[Prompt]:
    """The first `stop` distinct prompts of a dataset, which is streamed when `stop` is given."""
    prompts: dict[str, Prompt] = {}
    for number, row in enumerate(_dataset_rows(name, split, stop is not None), start=1):
        prompt = prompt_from_row(dict(row), f"{name}:{split}, row {number}")
        prompts.setdefault(prompt.id, prompt)
        if len(prompts) == stop:
            break
    if not prompts:
        raise DataError(f"dataset {name}:{split} is empty", fix="Try another split")
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
