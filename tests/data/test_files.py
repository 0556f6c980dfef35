from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from dspark.data.files import find_data, read_jsonl
from dspark.errors import DataError
from fakes import write_jsonl


def test_find_data_takes_a_path_as_given(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{}])
    assert find_data(file) == file
    assert find_data(str(file)) == file


def test_find_data_looks_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eval").mkdir()
    file = write_jsonl(tmp_path / "eval" / "a.jsonl", [{}])
    monkeypatch.setenv("DSPARK_DATA", str(tmp_path))
    assert find_data("eval/a.jsonl") == file


def test_find_data_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPARK_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"nowhere\.jsonl") as caught:
        find_data("nowhere.jsonl")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_read_jsonl_numbers_lines(tmp_path: Path, name: str) -> None:
    file = write_jsonl(tmp_path / name, [{"a": 1}, {"a": "ü"}])
    assert list(read_jsonl(file)) == [(1, {"a": 1}), (2, {"a": "ü"})]


def test_read_jsonl_passes_over_blank_lines_and_takes_odd_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": "\xe2\x80\xa8"}')
    assert list(read_jsonl(file)) == [(1, {"a": 1}), (4, {"a": "\u2028"})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "is not JSON .found: Expecting ',' delimiter at column 8"),
        (b'{"a": "x\x00y"}', "is not JSON .found: Invalid control character at column 9"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": "\xff"}', "is not UTF-8 .found: byte 0xff at byte 8"),
        (b'{"a": "x\\ud83d"}', r"half of a surrogate pair .found: .ud83d at column 9"),
        (b'{"a": "\\ud83d\\ude00 \\ude00"}', r"found: .ude00 at column 21"),
        ("{}".encode("utf-16"), "is not UTF-8 .found: UTF-16"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
)
def test_read_jsonl_names_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=message) as caught:
        list(read_jsonl(file))
    assert f"{file}:3" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_read_jsonl_refuses_an_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match="is empty"):
        list(read_jsonl(file))


def test_read_jsonl_refuses_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"a": 1}\n' * 2000, mtime=0)
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0xFF
    for number, content in enumerate([whole[:-12], b'{"a": 1}\n', bytes(broken)]):
        file = tmp_path / f"{number}.jsonl.gz"
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read|is not JSON"):
            list(read_jsonl(file))


def test_read_jsonl_refuses_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.jsonl"):
        with pytest.raises(DataError, match="cannot read"):
            list(read_jsonl(path))
