"""The list of words (`.ci/words.py`) finds what it is there for, and the project keeps to it."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = runpy.run_path(str(ROOT / ".ci" / "words.py"))

SOURCE = '''"""What the target said, judged."""
def peers(answers):  # clues
    key = "answers"
    judged = f"The {key} stand apart from others"
'''
PAGE = """An answer, `answer` and [link](answer.md) apart.

    answer

```
answer
```
"""


def test_prose_and_names_keep_to_the_glossary() -> None:
    assert list(LIST["findings"]()) == []


def test_source_is_sieved() -> None:
    words = list(LIST["hits"](LIST["prose_of_source"](SOURCE), LIST["WORDS"]))
    assert [(line, hit.partition(":")[0]) for line, hit in words] == [
        (1, "'judged'"),
        (1, "'said'"),
        (2, "'clues'"),
        (4, "'stand'"),
    ]
    names = LIST["names"](LIST["names_of_source"](SOURCE))
    assert sorted(names) == [
        (2, "name answers: see docs/glossary.md"),
        (2, "name peers: see docs/glossary.md"),
        (4, "name judged: see docs/glossary.md"),
    ]


def test_pages_are_sieved() -> None:
    hits = list(LIST["hits"](LIST["prose_of_page"](PAGE), LIST["WORDS"]))
    assert hits == [(1, "'answer': completion, complete")]


def test_rooms_that_wait_exist() -> None:
    for room in LIST["WAITING"]:
        assert (ROOT / "src" / "dspark" / room).exists(), room
