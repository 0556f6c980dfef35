"""One word for one thing: prose of documents and source against a list of words (`make lint`).

python .ci/words.py [ROOM ...]

Checked are the documents, and of source the docstrings, comments, messages (strings of several
words) and names. Code blocks and inline code are not: file formats and commands keep their names.
docs/glossary.md says which word is meant.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dspark"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAST = {"LOG.md", "glossary.md"}  # what happened keeps its words; the glossary names them

# Rooms whose words are still to be mended; none may be added.
WAITING = {
    *("__init__.py", "errors.py", "signals.py", "api", "attention", "calibration", "cli", "config"),
    *("core", "drafters", "engine", "evaluation", "export", "fetching", "native", "profiling"),
    *("reporting", "server", "targets", "training"),
}

WORDS = {
    r"stands?|stood": "is, is accepted, is kept",
    r"speaks?( for| of)?|spoke": "describes, predicts, is of",
    r"(set|sets|setting) (\w+ )?apart": "leave out, separate",
    r"first thing": "first",
    r"clues?": "features",
    r"taps?|tapped": "auxiliary hidden states",
    r"(?<!noise )floors?": "roofline",
    r"peers?": "baseline",
    r"contenders?": "baseline",
    r"lanes?": "baseline",
    r"judge[sd]?|judging|judgement": "verify, accept",
    r"(?<!final )answers?|answered|answering": "completion, complete",
    r"said": "completion, stated",
    r"hangs? (on|from)|hung on": "depends on",
}
NAMES = r"(?i)clue|contender|judg|peer|answer|(?<![a-z])said|(?<!noise_)floor(?!div)"


def prose_of_page(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a document without blocks of code and inline code."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("    ", "```")):
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)


def prose_of_source(text: str) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and messages of a module, by line."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        message = token.type in (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
        if token.type == tokenize.COMMENT or (message and len(token.string.split()) > 2):
            filled = re.match(r"(?i)[rb]*f", token.string)
            code = r"`[^`]*`|\{[^{}]*\}" if filled and message else r"`[^`]*`"
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, re.sub(code, "", line)


def names_of_source(text: str) -> Iterator[tuple[int, str]]:
    """Names that a module gives: of classes, functions, parameters and variables."""
    for node in ast.walk(ast.parse(text)):
        name = None
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        if name is not None:
            yield node.lineno, name


def hits(lines: Iterator[tuple[int, str]], words: dict[str, str]) -> Iterator[tuple[int, str]]:
    """What a list of words finds, with what to write instead."""
    for number, line in lines:
        for pattern, instead in words.items():
            for found in re.finditer(rf"(?i)\b(?:{pattern})\b", line):
                yield number, f"{found[0]!r}: {instead}"


def names(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for number, name in lines:
        if re.search(NAMES, name):
            yield number, f"name {name}: see docs/glossary.md"


def findings(rooms: Sequence[str] = ()) -> Iterator[str]:
    """Everything to mend, one line each; also in those of `rooms` that wait."""
    for page in PAGES:
        if page.name not in PAST:
            for number, hit in hits(prose_of_page(page.read_text(encoding="utf-8")), WORDS):
                yield f"{page.relative_to(ROOT)}:{number}: {hit}"
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0]
        if room not in WAITING or room in rooms:
            text = path.read_text(encoding="utf-8")
            for number, hit in [*hits(prose_of_source(text), WORDS), *names(names_of_source(text))]:
                yield f"{path.relative_to(ROOT)}:{number}: {hit}"


if __name__ == "__main__":
    found = list(findings(sys.argv[1:]))
    print("\n".join(found))
    sys.exit(bool(found))
