"""The documents against the code: verbs, options, recipe keys, paths, names and code blocks."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest

from dspark.cli.main import VERBS, _load
from dspark.config import recipe_model, valid_keys
from dspark.drafters.registry import DRAFTERS
from dspark.errors import DSparkError
from dspark.training.recipe import read_recipe

ROOT = Path(__file__).parents[1]
RECIPES = [recipe_model(drafter.Recipe) for drafter in DRAFTERS.values()]
KEYS = {key for model in RECIPES for key in valid_keys(model)}
SOURCE = ROOT / "src" / "dspark"
# The log and the changelog tell of the past, where other names may have held.
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")})
PAGES = [page for page in PAGES if page.name != "LOG.md"]
ROOMS = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir()}
ROOMS -= {"__init__", "__pycache__", "_drafters"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text_of(page)) if name == language]


def code_lines(page: Path) -> Iterator[str]:
    """Lines of fenced and indented blocks (Python apart) and inline code, one command each."""
    text = text_of(page)
    prose = FENCE.sub("", text)
    blocks = [body for name, body in FENCE.findall(text) if name != "python"]
    blocks += re.findall(r"^    .*(?:\n    .*)*", prose, re.MULTILINE)
    for block in blocks:
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    for code in re.findall(r"`([^`]+)`", prose):
        yield " ".join(code.split())


def commands(page: Path) -> Iterator[list[str]]:
    """Words after `dspark` of every command; what a pipe, `;`, `&&` or `#` follows is cut off."""
    for line in code_lines(page):
        start = re.match(r"\s*(?:\$ )?(?:\w+=\S+ )*(?:[\w./]+/)?dspark +(.*)", line)
        if start is not None:
            words = shlex.shlex(start[1], posix=True, punctuation_chars="|;&")
            words.whitespace_split = True
            yield list(takewhile(lambda word: not set(word) <= set("|;&"), words))


def options_of(verb: str) -> set[str]:
    command = _load(verb)
    names = {"--help", "-h"}
    for each in (command, *getattr(command, "commands", {}).values()):  # sub-verbs too
        for parameter in each.params:
            names |= {*parameter.opts, *parameter.secondary_opts}
    return names


def repository_paths(text: str) -> Iterator[str]:
    tops = r"src|tests|docs|configs|examples|results|\.ci"
    yield from re.findall(rf"(?<![\w./$~-])((?:{tops})/[\w./*-]*)", text)


# ---- commands -------------------------------------------------------------------------------


@each_page
def test_verbs_and_options_exist(page: Path) -> None:
    for words in commands(page):
        verb, rest = words[0], words[1:]
        if verb.isupper() or verb.startswith("-"):  # a stand-in such as VERB, or the program's own
            assert verb.isupper() or verb in {"--version", "--help", "-h"}, words
            continue
        assert verb in VERBS, f"{page.name}: dspark {verb}"
        known = options_of(verb)
        for word in rest:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in known, f"{page.name}: dspark {verb} {word}"


@each_page
def test_options_named_alone_exist(page: Path) -> None:
    known = {"--version"}.union(*map(options_of, VERBS))
    for line in code_lines(page):
        if line.startswith("--"):
            assert re.split(r"[ =]", line)[0] in known, f"{page.name}: {line}"


@each_page
def test_overrides_name_recipe_keys(page: Path) -> None:
    for words in commands(page):
        for option, value in pairwise(words):
            if option == "--set" and "=" in value:
                key = value.partition("=")[0]
                assert key in KEYS, f"{page.name}: --set {value}"


def test_the_sieve_sees_commands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Run `dspark train --config a.toml` or `X=1 dspark demo`.\n\n"
        "    .venv/bin/dspark generate 'a | b' \\\n        --json | head  # dspark fetch\n"
        "\n```sh\n$ dspark fetch && dspark demo\n```\n\n```python\ndspark import\n```\n"
    )
    assert list(commands(page)) == [
        ["fetch"],
        ["generate", "a | b", "--json"],
        ["train", "--config", "a.toml"],
        ["demo"],
    ]


@each_page
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for line in code_lines(page):
        match = re.match(r"\s*make ((?:[a-z]+ ?)+)", line.partition("#")[0])
        for target in match[1].split() if match else ():
            assert target in targets, f"{page.name}: make {target}"


# ---- recipes --------------------------------------------------------------------------------


def test_the_table_of_keys_is_the_configuration_s() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \|", text_of(ROOT / "docs/training.md"), re.M)
    keys = KEYS - {"data", "drafter", "loss", "optim", "run"}
    assert {key for key, _ in rows} == keys
    for key, shown in rows:
        *section, name = key.split(".")
        model: Any = next(model for model in RECIPES if key in valid_keys(model))
        if section:
            model = model.model_fields[section[0]].annotation
        field = model.model_fields[name]
        if field.is_required():
            assert shown == "required", key
        elif field.default is None:
            assert shown == "unset", key
        else:
            value = tomllib.loads(f"x = {shown.strip('`')}")["x"]
            assert value == (list(d) if isinstance(d := field.default, tuple) else d), key


@each_page
def test_recipes_in_the_text_load(page: Path, tmp_path: Path) -> None:
    for body in fences(page, "toml"):
        (tmp_path / "base.toml").write_text(text_of(ROOT / "configs/base.toml"), encoding="utf-8")
        (tmp_path / "recipe.toml").write_text(body, encoding="utf-8")
        read_recipe(tmp_path / "recipe.toml")


# ---- names and paths ------------------------------------------------------------------------


@each_page
def test_paths_exist(page: Path) -> None:
    # What a command is told to write need not be there yet.
    text = re.sub(r"--(?:json|plot|out) +\S+", "", text_of(page))
    for path in repository_paths(text):
        path = path.rstrip(".")
        found = list(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()
        assert found, f"{page.name}: {path}"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text_of(page)):
        if not link.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@each_page
def test_links_name_headings(page: Path) -> None:
    for file, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)]+)\)", text_of(page)):
        headings = headings_of(page.parent / file if file else page)
        known = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in known, f"{page.name}: {file}#{anchor}"


def headings_of(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*?)\s*$", FENCE.sub("", text_of(page)), re.MULTILINE)


def vague_references(text: str) -> list[str]:
    """References to a document of ours that name no page and heading."""
    return re.findall(r"(?i)\balgorithms? ?§[\d.]*|\(algorithms?:[^)]*|architecture notes", text)


def lost_references(text: str) -> list[str]:
    """References `docs/PAGE.md, "HEADING"` that lead nowhere."""
    text = re.sub(r"\s*\n[ \t]*(?:# )?", " ", text)
    found = re.findall(r'(docs/[\w.]+\.md), "([^"]+)"', text)
    return [
        f"{page}, {heading}"
        for page, heading in found
        if heading not in {h.partition(" (§")[0] for h in headings_of(ROOT / page)}
    ]


@pytest.mark.parametrize("folder", ["src", "tests", "examples", "docs"])
def test_references_to_sections_lead_somewhere(folder: str) -> None:
    """`docs/PAGE.md, "HEADING"` names a heading; a bare § is the paper's."""
    for path in sorted((ROOT / folder).rglob("*.*")):
        if path.suffix in (".py", ".md", ".cpp", ".h") and path != Path(__file__):
            text = text_of(path)
            assert not (vague_references(text) + lost_references(text)), path


def test_lost_references_are_seen() -> None:
    text = 'See (docs/algorithms.md,\n    "Verification") and docs/algorithms.md, "Nowhere".'
    assert lost_references(text) == ["docs/algorithms.md, Nowhere"]
    assert vague_references("as in algorithms §8 (algorithms: randomness)") == [
        "algorithms §8",
        "(algorithms: randomness",
    ]


@each_page
def test_dotted_names_exist(page: Path) -> None:
    """`room.module.Name.attribute`, relative to the package, or a key of a recipe."""
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(page))):
        match = re.fullmatch(r"(?:dspark\.)?(\w+(?:\.\w+)+)(?:\(\))?", code)
        if match is None or match[1].split(".")[0] not in ROOMS or match[1] in KEYS:
            continue
        if not re.search(r"\.(py|toml|json|md|safetensors)$", code):
            resolve(match[1])


def resolve(name: str) -> object:
    """The module, or the object in it, that a dotted name means."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(["dspark", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            thing = getattr(thing, part)
        return thing
    raise AssertionError(f"no module dspark.{name}")


def test_the_rooms_are_complete() -> None:
    """Every room of the package is named once, and nothing else is."""
    text = text_of(ROOT / "docs/architecture.md").split("## Rooms")[1].split("\n## ")[0]
    rooms = re.findall(r"^      (\w+)/ ", text.split("src/dspark/")[1].split("    tests/")[0], re.M)
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir()}
    assert sorted(rooms) == sorted(folders - {"_drafters", "__pycache__"})


def test_the_import_ladder_is_the_tested_one() -> None:
    from test_import_ladder import LADDER

    rows = re.findall(r"^\| (\d+) \| (.*?) \|$", text_of(ROOT / "docs/architecture.md"), re.M)
    for level, rooms in rows:
        assert set(rooms.split(", ")) <= LADDER[int(level)]
    named = {room for _, rooms in rows for room in rooms.split(", ")}
    assert named == ROOMS


def test_the_error_tree_is_complete() -> None:
    text = text_of(ROOT / "docs/architecture.md").split("## Errors")[1].split("\n## ")[0]
    shown = set(re.findall(r"\b(\w+Error)\b", text))
    every, waiting = set(), [DSparkError]
    while waiting:
        kind = waiting.pop()
        every.add(kind.__name__)
        waiting += [k for k in kind.__subclasses__() if k.__module__ == "dspark.errors"]
    assert shown == every


# ---- code -----------------------------------------------------------------------------------


@each_page
def test_python_blocks_compile(page: Path) -> None:
    for body in fences(page, "python"):
        compile(body, str(page), "exec")
