"""`dspark report` on the command line: the page's path, notes, and refusals in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark.cli import main as cli
from result_files import write_demo


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    code = cli.main(["report", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def test_results_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_demo(tmp_path / "results" / "demo.json")
    assert run(capsys) == (0, "report/index.html\n", "")
    assert (tmp_path / "report" / "index.html").is_file()


def test_files_folders_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path / "a" / "demo.json")
    write_demo(tmp_path / "b" / "demo.json")
    (tmp_path / "b" / "other.json").write_text("[]")
    out = tmp_path / "page"
    code, text, err = run(capsys, tmp_path / "a" / "demo.json", tmp_path / "b", "--out", out)
    assert (code, text) == (0, f"{out}/index.html\n")
    assert err == "b/other.json is left out: no schema\n"
    page = (out / "index.html").read_text()
    assert "a/demo.json" in page
    assert "b/demo.json" in page


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path / "good" / "demo.json")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for argv, words in (
        ([tmp_path / "nowhere"], "nowhere does not exist"),
        ([tmp_path / "empty"], "no result file in"),
        ([tmp_path / "bad.json"], "bad.json is damaged"),
        ([tmp_path / "good", "--out", tmp_path / "bad.json"], "cannot write"),
        ([tmp_path / "good", "--temperature", "warm"], "--temperature"),
    ):
        code, text, err = run(capsys, "--out", out, *argv)
        assert (code, text) == (2, "")
        assert err.startswith("dspark: error: ")
        assert err.count("\n") == 1
        assert words in err
    assert not out.exists()
