from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dspark.data.prompts import (
    Prompt,
    load_demo_prompts,
    load_prompts,
    prompt_from_row,
    spread,
    spread_prompts,
)
from dspark.errors import ConfigError, DataError
from fakes import write_jsonl


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_row_with_prompt_keeps_its_labels() -> None:
    row = {"id": 7, "prompt": "Hi", "domain": "chat", "source": "s", "dataset": "d", "more": []}
    assert prompt_from_row(row) == Prompt("7", user("Hi"), "chat", "s", "d")


def test_row_with_turns_gives_the_first() -> None:
    assert prompt_from_row({"id": "a", "turns": ["one", "two"]}).messages == user("one")


def test_row_with_messages_ends_with_the_user() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!", "extra": 1},
    ]
    prompt = prompt_from_row({"messages": messages, "prompt": None, "id": None})
    assert prompt.messages == messages[:2]
    assert prompt.text == "Hi"


def test_missing_id_follows_from_the_content_alone() -> None:
    one = prompt_from_row({"prompt": "Hi", "domain": "chat"})
    assert one.id == prompt_from_row({"turns": ["Hi", "more"]}).id
    assert one.id == "prompt-557f6d9586f57ae7"  # the same on every machine
    assert one.id != prompt_from_row({"prompt": "Hi!"}).id
    prompt_from_row({"prompt": "lone surrogate \ud800"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "has no prompt"),
        ({"question": "Hi"}, "fields question"),
        ({"prompt": 3}, "prompt must be a text"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"turns": []}, "turns must be a list"),
        ({"turns": "Hi"}, "turns must be a list"),
        ({"turns": [None]}, r"turns\[0\] must be a text"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": ["Hi"]}, r"messages\[0\] must be an object"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user"}]}, "content must be a text"),
        ({"messages": [{"role": "system", "content": "x"}]}, "nothing from the user"),
        ({"prompt": "Hi", "id": 1.5}, "id must be"),
        ({"prompt": "Hi", "id": True}, "id must be"),
        ({"prompt": "Hi", "id": ""}, "id must be"),
        ({"prompt": "Hi", "domain": 1}, "domain must be a text"),
    ],
)
def test_bad_rows_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prompt_from_row(row, "x.jsonl:4")
    assert "x.jsonl:4" in str(caught.value)


def test_load_prompts_from_a_file(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "p.jsonl.gz", [{"id": n, "prompt": f"p{n}"} for n in range(20)])
    assert [p.id for p in load_prompts(file)] == [str(n) for n in range(20)]
    assert [p.id for p in load_prompts(str(file), limit=3)] == ["0", "1", "2"]
    assert len(load_prompts(file, limit=50)) == 20


def test_seed_shuffles_before_the_limit(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "p.jsonl", [{"id": n, "prompt": f"p{n}"} for n in range(20)])
    whole = [p.id for p in load_prompts(file, seed=1)]
    assert sorted(map(int, whole)) == list(range(20))
    assert whole != [str(n) for n in range(20)]
    assert [p.id for p in load_prompts(file, limit=5, seed=1)] == whole[:5]
    assert [p.id for p in load_prompts(file, seed=2)] != whole


def test_repeated_ids_are_refused_with_their_lines(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x"}, {"id": "a", "prompt": "y"}]
    file = write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match=r"p\.jsonl: lines 1 and 3 .*found: a"):
        load_prompts(file)
    repeated = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "x"}, {"turns": ["x"]}])
    with pytest.raises(DataError, match="lines 1 and 2"):
        load_prompts(repeated)


def test_bad_line_is_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "x"}, {"promt": "y"}])
    with pytest.raises(DataError, match=r"p\.jsonl:2 has no prompt"):
        load_prompts(file)


@pytest.mark.parametrize("limit", [0, -1])
def test_bad_limit_is_refused(limit: int) -> None:
    with pytest.raises(ConfigError, match="limit"):
        load_prompts("any.jsonl", limit=limit)


@pytest.mark.parametrize("source", ["nowhere.jsonl", "some/nowhere.jsonl.gz", "plainname", "./a/b"])
def test_missing_file_is_not_taken_for_a_dataset(source: str) -> None:
    with pytest.raises(DataError, match=r"nowhere|plainname|a/b") as caught:
        load_prompts(source)
    assert "Hugging Face" not in str(caught.value)


def test_dataset_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        load_prompts("owner/name")


Loader = Callable[..., Any]


def install(monkeypatch: pytest.MonkeyPatch, load_dataset: Loader) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_dataset_rows_become_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, **options: Any) -> list[dict[str, Any]]:
        calls.append((name, options))
        return [{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}]

    install(monkeypatch, load_dataset)
    assert [p.text for p in load_prompts("owner/name", limit=2)] == ["a", "b"]
    assert len(load_prompts("owner/name:test", seed=0)) == 3
    assert calls == [
        ("owner/name", {"split": "train", "streaming": True}),
        ("owner/name", {"split": "test", "streaming": False}),
    ]


def test_dataset_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub")

    def breaks_off(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        yield {"prompt": "a"}
        raise RuntimeError("connection lost")

    for loader, message in ((offline, "no route"), (breaks_off, "connection lost")):
        install(monkeypatch, loader)
        with pytest.raises(DataError, match=message):
            load_prompts("owner/name")


def test_dataset_with_bad_or_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda *_, **__: [{"prompt": "a"}, {"text": "b"}])
    with pytest.raises(DataError, match="owner/name:train, row 2 has no prompt"):
        load_prompts("owner/name")
    install(monkeypatch, lambda *_, **__: [])
    with pytest.raises(DataError, match="is empty"):
        load_prompts("owner/name")


def test_spread_takes_turns() -> None:
    prompts = [Prompt(f"{d}{n}", user("x"), d) for d, k in (("a", 4), ("b", 1), ("c", 2))
               for n in range(k)]  # fmt: skip
    assert [p.id for p in spread(prompts, 6)] == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert [p.id for p in spread(prompts, 2)] == ["a0", "b0"]
    assert len(spread(prompts, 99)) == 7
    assert spread(prompts, 0) == spread([], 3) == []
    with pytest.raises(ConfigError):
        spread(prompts, -1)
    sets = [Prompt(f"{d}{n}", user("x"), "math", dataset=d) for d in "st" for n in range(3)]
    assert [p.id for p in spread(sets, 4)] == ["s0", "t0", "s1", "t1"]


def test_prompts_of_several_files_or_of_the_bundle(tmp_path: Path) -> None:
    files = [tmp_path / f"{domain}.jsonl" for domain in ("math", "code")]
    for file in files:
        rows = [{"id": f"{file.stem}{n}", "prompt": "x", "domain": file.stem} for n in range(2)]
        write_jsonl(file, rows)
    assert [p.id for p in spread_prompts(files)] == ["math0", "code0", "math1", "code1"]
    assert [p.id for p in spread_prompts(files, 2)] == ["math0", "code0"]
    bundle = load_demo_prompts()
    assert spread_prompts() == spread_prompts([]) == spread(bundle, len(bundle))
    assert len({p.domain for p in spread_prompts(limit=3)}) == 3


def test_demo_prompts() -> None:
    prompts = load_demo_prompts()
    assert Counter(p.domain for p in prompts) == {"math": 10, "code": 10, "chat": 10}
    assert prompts[0].id == "demo-math-0"
    assert len({p.text for p in prompts}) == 30
    assert all(30 < len(p.text) < 600 for p in prompts)
    assert all(len(p.messages) == 1 for p in prompts)
    json.dumps([p.messages for p in prompts])
