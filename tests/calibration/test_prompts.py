"""Which prompts rounds are made of, and the split."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark.calibration.prompts import choose_prompts, in_check
from dspark.errors import DataError
from fakes import write_jsonl


def test_choice_of_prompts(tmp_path: Path) -> None:
    rows = [{"id": f"{d}{i}", "domain": d, "prompt": f"{d} {i}"} for d in "ab" for i in range(6)]
    one, two = write_jsonl(tmp_path / "1.jsonl", rows[:8]), write_jsonl(tmp_path / "2.jsonl", rows)
    trained = write_jsonl(tmp_path / "answers.jsonl.gz", [{"id": "a3"}, {"id": "b3"}, {"id": "z"}])
    chosen = choose_prompts([one, two], [trained], seed=1)
    assert {p.id for p in chosen} == {row["id"] for row in rows} - {"a3", "b3"}
    assert len(chosen) == 10  # the same prompt in two files is one
    assert sorted(p.domain for p in choose_prompts([two], limit=4, seed=1)) == ["a", "a", "b", "b"]
    again = choose_prompts([one, two], [trained], seed=1)
    assert again == chosen
    assert choose_prompts([one, two], [trained], seed=2) != chosen
    kept = choose_prompts([one, two], seed=1, only=[trained])
    assert sorted(p.id for p in kept) == ["a3", "b3"]
    left = write_jsonl(tmp_path / "left.jsonl", [{"id": "a3"}])
    assert [p.id for p in choose_prompts([two], [left], only=[trained])] == ["b3"]


def test_prompts_that_cannot_be_used(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "1.jsonl", [{"id": "1", "prompt": "a"}])
    with pytest.raises(DataError, match=r"no prompt is left .*1 prompts, all of them"):
        choose_prompts([one], [one])
    nobody = write_jsonl(tmp_path / "4.jsonl", [{"id": "9"}])
    with pytest.raises(DataError, match=r"or in none of those to keep.*these prompts' ids"):
        choose_prompts([one], only=[nobody])
    other = write_jsonl(tmp_path / "2.jsonl", [{"id": "1", "prompt": "b"}])
    with pytest.raises(DataError, match="two prompts have the id 1"):
        choose_prompts([one, other])
    nameless = write_jsonl(tmp_path / "3.jsonl", [{"response": "b"}])
    with pytest.raises(DataError, match=r"3\.jsonl:1 has no id"):
        choose_prompts([one], [nameless])


def test_the_split_follows_from_the_id_alone() -> None:
    names = [f"p{i}" for i in range(2000)]
    few, half = ({n for n in names if in_check(n, share)} for share in (0.1, 0.5))
    assert few < half
    assert len(few) == pytest.approx(200, abs=60)
    assert len(half) == pytest.approx(1000, abs=100)
    assert all(in_check(name, 1) for name in names)
