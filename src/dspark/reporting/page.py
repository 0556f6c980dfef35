"""One self-contained HTML page: text, tables and pictures; no link leads out of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dspark.reporting.tables import Cell, Table

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
  max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.5rem;
  border-bottom: 1px solid #d5d9de; } nav a { margin-right: .9rem; white-space: nowrap; }
a { color: #0b57a4; } code { font-size: .9em; background: #f1f3f5; padding: .1em .3em; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e3e6ea;
  vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; } th.group { text-align: center; }
.name { text-align: left; } td small { display: block; color: #5a626c; white-space: nowrap; }
figure { margin: 1rem 0; } figure img { width: 100%; min-width: 34rem; height: auto; }
figcaption, .note { color: #3c444d; font-size: .95rem; }
.missing { border-left: 4px solid #d5a100; background: #fdf8e7; padding: .6rem .9rem; }
details { margin: .5rem 0; } dt { font-weight: 600; margin-top: .4rem; } dd { margin: 0; }
@media print { details { break-inside: avoid; } figure, table { break-inside: avoid; } }
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, the name of its file, and the sentence or two that say what to see."""

    file: str
    png: bytes
    caption: str


@dataclass(frozen=True, slots=True)
class Missing:
    """What a section lacks, and the command that makes it, if one does."""

    what: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Named texts, folded away under a summary."""

    summary: str
    rows: list[tuple[str, str]]


Block = str | Table | Picture | Missing | Facts


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it; plain strings are paragraphs."""

    title: str
    blocks: list[Block]


def numbered(what: str, place: int) -> str:
    """A picture's file name; from the second of its kind on with a number."""
    return f"{what}.png" if place == 1 else f"{what}_{place}.png"


def render(title: str, sections: Sequence[Section]) -> str:
    """The whole page; every text in it is escaped."""
    links = "".join(
        f'<a href="#s{number}">{escape(section.title)}</a>\n'
        for number, section in enumerate(sections)
    )
    body = "".join(_section(number, section) for number, section in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<nav>\n{links}</nav>\n{body}</body>\n</html>\n"
    )


def _section(number: int, section: Section) -> str:
    blocks = "".join(map(_block, section.blocks))
    return f'<section id="s{number}">\n<h2>{escape(section.title)}</h2>\n{blocks}</section>\n'


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        return _picture(block)
    if isinstance(block, Missing):
        command = f" Make it with <code>{escape(block.command)}</code>" if block.command else ""
        return f'<p class="missing">{escape(block.what)}{command}</p>\n'
    if isinstance(block, Facts):
        rows = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>\n" for a, b in block.rows)
        summary = escape(block.summary)
        return f"<details><summary>{summary}</summary>\n<dl>\n{rows}</dl></details>\n"
    return f"<p>{escape(block)}</p>\n"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = escape(picture.caption)
    width = int.from_bytes(picture.png[16:20], "big") // 2  # sharp where a pixel is two dots
    style = f"max-width: {width}px"
    image = f'<img src="data:image/png;base64,{data}" style="{style}" alt="{caption}">'
    return f'<figure><div class="wide">{image}</div>\n<figcaption>{caption}</figcaption></figure>\n'


def _table(table: Table) -> str:
    groups = "".join(
        f'<th class="group" colspan="{span}">{escape(name)}</th>' for name, span in table.groups
    )
    head = "".join(
        f"<th{_name(column, table)}>{escape(text)}</th>" for column, text in enumerate(table.head)
    )
    rows = "".join(
        "<tr>" + "".join(_cell(cell, _name(i, table)) for i, cell in enumerate(row)) + "</tr>\n"
        for row in table.rows
    )
    caption = f"<caption>{escape(table.title)}</caption>\n" if table.title else ""
    above = f"<tr>{groups}</tr>\n" if groups else ""
    heads = f"<thead>\n{above}<tr>{head}</tr>\n</thead>\n" if any(table.head) else ""
    return f'<div class="wide"><table>\n{caption}{heads}<tbody>\n{rows}</tbody>\n</table></div>\n'


def _name(column: int, table: Table) -> str:
    return ' class="name"' if column < table.names else ""


def _cell(cell: Cell, attribute: str) -> str:
    text = f"<b>{escape(cell.text)}</b>" if cell.strong else escape(cell.text)
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f"<td{attribute}>{text}{note}</td>"
