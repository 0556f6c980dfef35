"""Where things lie for users without a home, with one that is not there, and with none to write."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspark import artifacts
from dspark.artifacts import folders
from dspark.errors import DataError

pwd = pytest.importorskip("pwd")


@pytest.fixture(autouse=True)
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user that the system has no entry of and no variable speaks for; the temporary folder."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "DSPARK_CACHE", "TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folders._temporary.cache_clear()
    yield tmp_path / "tmp"
    folders._temporary.cache_clear()


def kept_in_temporary(reason: str) -> Path:
    with pytest.warns(UserWarning, match=f"{reason}, so what is kept goes to .*DSPARK_CACHE"):
        found = artifacts.cache_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert artifacts.cache_dir() == found  # and not another word
    return found


def test_no_home_is_a_temporary_folder_with_one_warning(stranger: Path) -> None:
    found = kept_in_temporary("There is no home folder")
    assert found == stranger / f"dspark-{os.getuid()}"
    assert found.stat().st_mode & 0o777 == 0o700
    folders._temporary.cache_clear()
    assert kept_in_temporary("There is no home folder") == found  # the next run finds it again


def test_what_was_said_counts_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert artifacts.cache_dir() == tmp_path / "x" / "dspark"
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "c"))
    assert artifacts.cache_dir() == tmp_path / "c"
    monkeypatch.setenv("DSPARK_CACHE", "~/c")
    monkeypatch.setenv("DSPARK_DATA", "~/d")
    assert artifacts.cache_dir() == Path("~/c")  # as a shell has it
    assert artifacts.data_dir() == Path("~/d")
    with pytest.raises(DataError, match="does not exist"):
        artifacts.find_data("~/no.jsonl")


@pytest.mark.parametrize("home", ["/proc/nonexistent", "/"])
def test_a_home_where_nothing_can_be_made(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers under any user id have the first or the second."""
    monkeypatch.setenv("HOME", home)
    may = os.access
    closed = ("/", "/proc")
    monkeypatch.setattr(
        folders.os, "access", lambda path, mode: str(path) not in closed and may(path, mode)
    )
    kept_in_temporary("cannot be made")


def test_a_read_only_cache_that_is_there_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image may bring models with it."""
    (tmp_path / ".cache" / "dspark").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(folders.os, "access", lambda path, mode: False)
    assert artifacts.cache_dir() == tmp_path / ".cache" / "dspark"


@pytest.mark.parametrize("trap", ["link", "open to others", "a file"])
def test_a_folder_that_others_prepared_is_not_taken(
    trap: str, stranger: Path, tmp_path: Path
) -> None:
    name = stranger / f"dspark-{os.getuid()}"
    (tmp_path / "theirs").mkdir()
    if trap == "link":
        name.symlink_to(tmp_path / "theirs")
    elif trap == "a file":
        name.write_text("")
    else:
        name.mkdir()
        name.chmod(0o777)
    found = kept_in_temporary("There is no home folder")
    assert found != name
    assert found.parent == stranger
    assert found.stat().st_mode & 0o077 == 0


def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(DataError, match=r"no place for temporary files .*Set DSPARK_CACHE"):
        artifacts.cache_dir()
