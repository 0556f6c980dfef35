"""The page: every section there or its command named, numbers as in the files, nothing outside."""

from __future__ import annotations

import base64
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dspark.artifacts import append_jsonl
from dspark.cli.main import VERBS, _load
from dspark.errors import ConfigError, DataError
from dspark.reporting import report
from dspark.reporting.evidence import COMMANDS
from dspark.reporting.page import Facts, Missing, Picture, Section, render
from dspark.reporting.tables import Cell, Table
from result_files import (
    DATASETS,
    SKILL,
    eval_row,
    write_all,
    write_demo,
    write_eval,
)
from system_files import write_system

PICTURES = {
    "acceptance_by_position.png",
    "depth.png",
    "block_size.png",
    "thresholds.png",
    "reliability.png",
    "budget.png",
    "head.png",
    "vocabulary.png",
    "training_curves.png",
    "frontier.png",
    "load.png",
    "peers.png",
    "cost.png",
    "kernels.png",
    "runs.png",
}


class Reader(HTMLParser):
    """Tables as lists of rows of (text, note), by their captions; and all tags that were met."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, str]]]] = {}
        self.tags: set[str] = set()
        self.text = ""
        self.rows: list[list[tuple[str, str]]] = []
        self.cell, self.note, self.inside = "", "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "table":
            self.rows, self.cell = [], ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th", "caption"):
            self.inside, self.cell, self.note = tag, "", ""
        elif tag == "small":
            self.inside = tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside == "small":
            self.note += data
        elif self.inside:
            self.cell += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption":
            self.tables[self.cell] = self.rows
        elif tag in ("td", "th"):
            self.rows[-1].append((self.cell, self.note))
        if tag in ("td", "th", "caption"):
            self.inside = ""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A report's folder from a file of every kind, and what the files hold."""
    folder = tmp_path_factory.mktemp("report")
    files = write_all(folder / "results")
    write_system(folder / "results")
    page, notes = report.run([folder / "results"], folder / "out")
    assert (page, notes) == (folder / "out" / "index.html", [])
    return folder / "out", files


Full = tuple[Path, dict[str, dict[str, Any]]]


def make(tmp_path: Path, temperature: float | None = None) -> str:
    page, _ = report.run([tmp_path / "results"], tmp_path / "out", temperature)
    return page.read_text()


# ---- a page with everything -------------------------------------------------------------------


def test_every_picture_is_beside_the_page_and_inside_it(full: Full) -> None:
    out, _ = full
    page = (out / "index.html").read_text()
    assert {path.name for path in out.iterdir()} == PICTURES | {"index.html"}
    assert "Make it with" not in page
    inside = set(re.findall(r'src="data:image/png;base64,([^"]+)"', page))
    assert inside == {base64.b64encode((out / p).read_bytes()).decode() for p in PICTURES}
    assert page.count("<figcaption>") == len(PICTURES)


def test_nothing_leads_outside(full: Full) -> None:
    page = (full[0] / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:image/png;base64,|#)', page)
    assert "://" not in page
    assert "url(" not in page
    assert 'name="viewport"' in page
    assert not Reader(page).tags & {"script", "link", "iframe"}


def test_sections_in_the_paper_s_order(full: Full) -> None:
    page = (full[0] / "index.html").read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles[0] == "Summary"
    assert titles[-1] == "Provenance"
    figures = [title for title in titles if "Figure" in title]
    assert [re.sub(r"\D", "", title) for title in figures] == list("2345678")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_accepted_lengths_are_the_files(full: Full, temperature: float) -> None:
    out, files = full
    tables = Reader((out / "index.html").read_text()).tables
    groups, head, *rows = tables[f"accepted_length at temperature {temperature:g}"]
    assert [text for text, _ in groups] == ["", "math", "code", "chat", ""]
    assert [text for text, _ in head] == ["drafter", *DATASETS, "macro"]
    assert [row[0][0] for row in rows] == list(SKILL)
    data = files["eval.json"]
    for row in rows:
        for (text, note), dataset in zip(row[1:-1], DATASETS, strict=True):
            found = next(
                r
                for r in data["rows"]
                if (r["drafter"], r["dataset"], r["temperature"])
                == (row[0][0], dataset, temperature)
            )
            low, high = found["accepted_length_ci"]
            assert text == f"{found['accepted_length']:.2f}"
            assert note == f"{low:.2f} to {high:.2f}"
        macro = macro_of(data, row[0][0], temperature)
        assert row[-1][0] == f"{macro['accepted_length']:.2f}"
        low, high = macro["accepted_length_ci"]
        assert row[-1][1] == f"{low:.2f} to {high:.2f}"


def macro_of(data: dict[str, Any], drafter: str, temperature: float) -> dict[str, Any]:
    found = (m for m in data["macro"] if (m["drafter"], m["temperature"]) == (drafter, temperature))
    return dict(next(found))


def test_gains_of_dspark_are_the_file_s(full: Full) -> None:
    out, files = full
    tables = Reader((out / "index.html").read_text()).tables
    head, row = tables["Gain of dspark in macro accepted_length at temperature 1"]
    gains = macro_of(files["eval.json"], "dspark", 1.0)["gains"]
    assert [text for text, _ in head] == ["drafter", *(f"over {other}" for other in gains)]
    assert [text for text, _ in row] == ["dspark", *(f"{g['gain']:+.1%}" for g in gains.values())]
    assert row[1][1] == "{:+.1%} to {:+.1%}".format(*gains["mtp"]["ci"])


def test_calibration_speed_and_training_are_the_files(full: Full) -> None:
    out, files = full
    tables = Reader((out / "index.html").read_text()).tables
    rows = tables["Calibration by slot, results/calibration.json"]
    slot = files["calibration.json"]["positions"][1]
    assert [text for text, _ in rows[2]][4:8] == [
        f"{slot['ece_before']:.2%}",
        f"{slot['ece_after']:.2%}",
        f"{slot['noise_floor']:.2%}",
        f"{slot['auroc']:.3f}",
    ]
    assert "5.80%" in [text for text, _ in rows[-1]]
    heads = tables["Confidence heads at temperature 1, results/confidence.json"]
    assert [text for text, _ in heads[2]] == ["2", "2,998", "0.640", "0.720", "0.740"]
    speeds = [text for text, _ in tables["Speed with and without the drafter, one user"][1]]
    assert {"38.2", "75.1", "108.4", "1.44", "1.95", "20%"} <= set(speeds)
    training = {row[0][0]: [text for text, _ in row] for row in tables["Training"][1:]}
    assert training["mtp"][5:] == ["16,123,456", "66.0", "826,645", "1,465,476"]
    assert training["dspark-25"][6] == "16.5"


def test_captions_are_worded_from_the_data(full: Full) -> None:
    out, files = full
    page = Reader((out / "index.html").read_text()).text
    depth = files["eval_depth.json"]
    one, five = (macro_of(depth, f"dspark-{n}", 1.0)["accepted_length"] for n in (1, 5))
    assert f"dspark, vanilla head {one:.2f} → {five:.2f}" in page
    sweep = files["eval_threshold.json"]["rows"]
    math = next(r for r in sweep if (r["policy"], r["domain"]) == ("threshold:0.9", "math"))
    assert f"→ {1 - math['wasted_tokens'] / math['verified_tokens']:.1%}" in page
    assert "goes from 5.80% to 1.01%" in page
    assert "at 25%" in page
    assert "dspark, rnn head 0.54 → 1.80" in page


def test_provenance_names_command_versions_and_hashes(full: Full) -> None:
    page = Reader((full[0] / "index.html").read_text()).text
    for words in ("dspark eval --json results/eval.json", "torch 2.13.0", "ab" * 32, "Example CPU"):
        assert words in page
    assert "numpy" not in page  # its version is not known


# ---- less than everything ---------------------------------------------------------------------


def test_what_is_missing_comes_with_its_command(tmp_path: Path) -> None:
    write_demo(tmp_path / "results" / "demo.json")
    page = make(tmp_path)
    text = Reader(page).text
    for key, command in COMMANDS.items():
        assert (command in text) == (key != "demo"), key
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    write_eval(tmp_path / "results" / "demo.json", [eval_row("dspark")])
    assert COMMANDS["demo"] in Reader(make(tmp_path)).text


@pytest.mark.parametrize("key", COMMANDS)
def test_the_commands_exist(key: str) -> None:
    words = shlex.split(COMMANDS[key])
    if words[0] == "make":
        makefile = (Path(__file__).parents[2] / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
        return
    assert words[0] == "dspark"
    assert words[1] in VERBS
    command = _load(words[1])
    command = getattr(command, "commands", {}).get(words[2], command)  # a verb with sub-verbs
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_temperature_of_the_figures(tmp_path: Path) -> None:
    rows = [eval_row("dspark", temperature=t) for t in (0.0, 1.0)]
    write_eval(tmp_path / "results" / "eval.json", rows)
    write_eval(tmp_path / "results" / "depth.json", [eval_row("dspark")], "depth")
    assert "Macro accepted_length at temperature 1:" in make(tmp_path)
    page = make(tmp_path, 0.0)
    assert "Macro accepted_length at temperature 0:" in page
    assert "No study of depth was measured at temperature 0 (measured at 1)." in page
    with pytest.raises(ConfigError, match=r"Nothing was measured at temperature 0\.5.*0, 1"):
        make(tmp_path, 0.5)


def test_training_logs_are_named_by_file_or_folder(tmp_path: Path) -> None:
    row = {"kind": "held_out", "minutes": 1.0}
    for number, name in enumerate(("dspark/train_log", "train_log", "x/train_log_y")):
        path = tmp_path / "results" / f"{name}.jsonl"
        append_jsonl(path, [row | {"accepted_length": 1.5 + number}])
    assert "dspark 1.50; results 2.50; x/y 3.50" in make(tmp_path)


def test_one_drafter_has_no_gain_and_nothing_bold(tmp_path: Path) -> None:
    write_eval(tmp_path / "results" / "eval.json", [eval_row("dspark")])
    page = make(tmp_path)
    assert "No gain of dspark over another drafter at temperature 1 is known." in page
    assert "<b>" not in page


def test_numbers_that_are_not_known_are_dashes(tmp_path: Path) -> None:
    row = eval_row("dspark") | {"accepted_length": None, "accepted_length_ci": None}
    write_eval(tmp_path / "results" / "eval.json", [row, eval_row("dflash", "dflash", "mbpp")])
    rows = Reader(make(tmp_path)).tables["accepted_length at temperature 1"]
    assert [text for text, _ in rows[-1]][:3] == ["dspark", "–", "–"]


def test_files_left_out_are_on_the_page(tmp_path: Path) -> None:
    write_demo(tmp_path / "results" / "demo.json")
    (tmp_path / "results" / "other.json").write_text('{"schema": "else/1"}')
    assert "results/other.json is left out: unknown schema else/1" in Reader(make(tmp_path)).text


# ---- safety -----------------------------------------------------------------------------------


def test_all_text_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert('x')</script>&\"$\\x$"
    row = eval_row(bad, training={"anchors": 1, "elapsed_s": 60.0, "response_tokens": 1})
    row |= {"dataset": bad, "domain": bad, "kind": bad}
    for name, study in (("a", None), ("b", "depth"), ("c", "head")):
        write_eval(tmp_path / "results" / f"{name}<i>.json", [row], study)
    (tmp_path / "results" / "d<i>.json").write_text('{"schema": "<script>"}')
    page = make(tmp_path)
    reader = Reader(page)
    assert not reader.tags & {"script", "i"}
    assert bad in reader.text
    assert "results/a<i>.json" in reader.text


def test_every_kind_of_block_escapes() -> None:
    bad = "<u>&"
    blocks: list[Any] = [
        bad,
        Table(bad, [bad], [[Cell(bad, bad, strong=True)]], [(bad, 1)]),
        Picture("a.png", b"\x89PNG" + bytes(20), f'"{bad}'),
        Missing(bad, bad),
        Facts(bad, [(bad, bad)]),
    ]
    page = render(bad, [Section(bad, blocks)])
    assert "<u>" not in page
    assert Reader(page).text.count(bad) == 16


def test_damage_leaves_the_old_page(tmp_path: Path) -> None:
    write_demo(tmp_path / "results" / "demo.json")
    before = make(tmp_path)
    write_eval(tmp_path / "results" / "eval.json", [eval_row("dspark")])
    (tmp_path / "results" / "half.json").write_text("{")
    with pytest.raises(DataError, match=r"half\.json is damaged"):
        make(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    assert (tmp_path / "out" / "index.html").read_text() == before


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    write_demo(tmp_path / "results" / "demo.json")
    (tmp_path / "out").write_text("kept")
    with pytest.raises(DataError, match="cannot write"):
        make(tmp_path)
    assert (tmp_path / "out").read_text() == "kept"


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    write_demo(tmp_path / "results" / "demo.json")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    assert make(tmp_path) == make(tmp_path)
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_no_torch() -> None:
    code = "import dspark.reporting.report, dspark.cli.report, sys; "
    code += "found = {'torch', 'transformers', 'matplotlib'} & sys.modules.keys(); "
    code += "assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
