"""The playground page: what its files may hold, and its logic run by node without a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "src" / "dspark" / "server" / "page"
FILES = sorted(path for path in PAGE.iterdir() if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
SVG_NAME = "http://www.w3.org/2000/svg"  # names the language; nothing is fetched
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)


def text_of(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """All start tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def values(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def html() -> Tags:
    return Tags(text_of("index.html"))


# ---- files ----------------------------------------------------------------------------------


def test_the_page_is_whole() -> None:
    names = {path.name for path in FILES}
    assert {"index.html", "page.js", "page.css", "page_logic.js"} <= names
    # The types that the server knows how to send.
    assert {path.suffix for path in FILES} <= {".html", ".js", ".css", ".svg"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_short_and_reach_nothing_outside(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 350
    assert re.findall(r"\w+://", text.replace(SVG_NAME, "")) == []
    assert not re.search(r"""["'(=]\s*//\w""", text), "an address without its scheme"
    assert not re.search(r"@import|url\(|data:[a-z]+/", text)


def test_addresses_in_the_page_are_its_own_files(html: Tags) -> None:
    for address in chain(html.values("src"), html.values("href")):
        assert address.startswith("/page/")
        assert (PAGE / address.removeprefix("/page/")).is_file(), address


@each_script
def test_imports_are_files_and_names_they_export(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    found = re.findall(r'import\s*\{([^}]*)\}\s*from\s*"\./([\w.]+)"', text)
    assert len(found) == len(re.findall(r"^import\b", text, re.MULTILINE))
    for names, file in found:
        for name in filter(None, (name.strip() for name in names.split(","))):
            pattern = rf"^export (?:async )?(?:function\*?|class|const) {name}\b"
            assert re.search(pattern, text_of(file), re.MULTILINE), f"{name} of {file}"


# ---- security -------------------------------------------------------------------------------


def test_nothing_in_the_page_needs_inline_permission(html: Tags) -> None:
    policy = next(
        attrs["content"] or ""
        for tag, attrs in html.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    for tag, attrs in html.tags:
        assert tag != "style"
        assert tag != "script" or attrs.get("src"), "a script must be a file"
        assert "style" not in attrs
        assert not [name for name in attrs if name.startswith("on")]


@each_script
def test_text_never_becomes_markup_or_code(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc"
    code = r"\beval\(|new Function|createContextualFragment|setAttribute\(\"(?:style|on)"
    assert re.findall(f"{markup}|{code}", text) == []


@each_script
def test_the_key_is_kept_for_the_session_only(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert not re.search(r"localStorage|indexedDB|document\.cookie", text)


# ---- structure ------------------------------------------------------------------------------


def test_ids_are_unique_and_references_lead_somewhere(html: Tags) -> None:
    ids = html.values("id")
    assert len(ids) == len(set(ids))
    for name in ("for", "aria-labelledby", "aria-describedby"):
        assert set(html.values(name)) <= set(ids)


def test_every_id_the_scripts_ask_for_is_in_the_page(html: Tags) -> None:
    wanted = set()
    for script in SCRIPTS:
        text = script.read_text(encoding="utf-8")
        wanted |= set(re.findall(r'byId\("([^"]+)"\)', text))
    plots, chat = text_of("plots.js"), text_of("chat.js")
    figures = re.findall(r'\bid: "([^"]+)"', plots)
    assert len(figures) == 3
    wanted |= {f"{figure}-{part}" for figure in figures for part in ("plot", "now", "table")}
    kinds = re.search(r"const KINDS = \[(.*)\]", chat)
    numbers = re.search(r"const NUMBERS = \{(.*)\}", chat)
    assert kinds is not None
    assert numbers is not None
    wanted |= {f"count-{kind}" for kind in re.findall(r'"(\w+)"', kinds[1])}
    wanted |= set(re.findall(r'"([\w-]+)"', numbers[1]))
    assert len(wanted) > 30
    assert wanted <= set(html.values("id"))


def test_every_field_and_picture_has_a_name(html: Tags) -> None:
    labelled = set(html.values("for"))
    for tag, attrs in html.tags:
        if tag in ("input", "textarea", "select"):
            assert attrs["id"] in labelled
        if tag == "svg":
            assert attrs["role"] == "img"
            assert attrs["aria-label"]
    live = {attrs["id"]: attrs.get("role") for _, attrs in html.tags if attrs.get("role")}
    assert live["answer-status"] == live["connection"] == "status"
    assert live["chat-error"] == "alert"


# ---- colours --------------------------------------------------------------------------------

# (foreground, grounds it stands on, least contrast): WCAG AA asks 4.5 of text, 3 of lines.
PAIRS = [
    ("text", ("ground", "panel"), 4.5),
    ("muted", ("ground", "panel"), 4.5),
    ("error", ("ground", "panel"), 4.5),
    ("accepted", ("accepted-ground", "ground", "panel"), 4.5),
    ("drawn", ("drawn-ground", "ground"), 4.5),
    ("on-accent", ("accent", "line-a"), 4.5),
    ("text", ("accepted-ground", "drawn-ground"), 4.5),
    ("frame", ("ground", "panel"), 3.0),
    ("accent", ("ground", "panel", "accepted-ground", "drawn-ground"), 3.0),
    ("line-a", ("panel",), 3.0),
    ("line-b", ("panel",), 3.0),
]


def palettes() -> list[dict[str, str]]:
    """The light palette, and the dark one."""
    blocks = re.findall(r":root \{(.*?)\}", text_of("page.css"), re.DOTALL)
    found = [dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", block)) for block in blocks]
    assert len(found) == 2
    assert found[0].keys() == found[1].keys()
    return found


def luminance(colour: str) -> float:
    """Relative luminance of a colour, 0 to 1 (WCAG 2)."""
    shares = [value / 255 for value in bytes.fromhex(colour)]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_colours_can_be_read(palette: dict[str, str]) -> None:
    for front, grounds, least in PAIRS:
        for ground in grounds:
            dim, bright = sorted((luminance(palette[front]), luminance(palette[ground])))
            assert (bright + 0.05) / (dim + 0.05) >= least, f"{front} on {ground}"


def test_colours_of_the_style_exist() -> None:
    css = text_of("page.css")
    assert set(re.findall(r"var\(--([\w-]+)\)", css)) == palettes()[0].keys()


def test_kinds_of_tokens_differ_without_colour() -> None:
    """Accepted tokens have one line, drawn ones two, plain ones none."""
    css = text_of("page.css")
    rules = dict(re.findall(r"\.token\.(\w+), \.sample\.\1 \{(.*?)\}", css, re.DOTALL))
    assert rules.keys() == {"accepted", "drawn"}
    assert all("text-decoration-line: underline" in rule for rule in rules.values())
    assert ["double" in rules[kind] for kind in ("accepted", "drawn")] == [False, True]


# ---- logic ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts where every version of node reads them as modules."""
    folder = tmp_path_factory.mktemp("page")
    for script in SCRIPTS:
        shutil.copy(script, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def run_node(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert NODE is not None
    command = [NODE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@needs_node
@each_script
def test_scripts_can_be_read(script: Path, node_folder: Path) -> None:
    done = run_node("--check", node_folder / script.name)
    assert done.returncode == 0, done.stderr


@needs_node
def test_logic(node_folder: Path) -> None:
    script = Path(__file__).with_name("page_logic.test.mjs")
    done = run_node(shutil.copy(script, node_folder))
    assert done.returncode == 0, done.stdout + done.stderr
    count = re.search(r"^\S+ pass (\d+)$", done.stdout, re.MULTILINE)
    assert count is not None
    assert int(count[1]) == script.read_text(encoding="utf-8").count("\ntest(")
