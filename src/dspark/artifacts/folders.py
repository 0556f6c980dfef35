"""Where things lie on this machine."""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

from dspark.errors import DataError

_POSIX = os.name == "posix"


def cache_dir() -> Path:
    """Folder for what can be made again: `$DSPARK_CACHE`, else the user's cache folder/dspark.

    Where there is no such folder and none can be made (no HOME, one that is not there or not
    writable, as in containers under any user id), it is a folder of temporary files, with a
    warning.
    """
    if own := os.environ.get("DSPARK_CACHE"):
        return expanded(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "dspark"
    except RuntimeError:  # neither HOME nor an entry of this user
        return _temporary("There is no home folder")
    if folder.is_dir() or _may_write_above(folder):
        return folder
    return _temporary(f"{folder} cannot be made")


def _may_write_above(folder: Path) -> bool:
    above = next((path for path in folder.absolute().parents if path.exists()), Path("/"))
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


@cache
def _temporary(reason: str) -> Path:
    """A cache among temporary files, the same one in the next run if it is ours alone.

    Programs are loaded from the cache, so a folder that others may write to is not taken.

    Raises:
        DataError: there is no place for temporary files.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"dspark-{os.getuid() if _POSIX else 'cache'}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()
        ours = not _POSIX or (facts.st_uid == os.getuid() and not facts.st_mode & 0o022)
        if not stat.S_ISDIR(facts.st_mode) or not ours:
            folder = Path(tempfile.mkdtemp(prefix="dspark-"))
    except OSError as exc:
        raise DataError(
            f"{reason}, and there is no place for temporary files",
            found=exc.strerror,
            fix="Set DSPARK_CACHE to a folder you may write to",
        ) from exc
    warnings.warn(
        f"{reason}, so what is kept goes to {folder}; set DSPARK_CACHE to a better place",
        stacklevel=3,
    )
    return folder


def data_dir() -> Path:
    """Folder of data the repository does not hold: `$DSPARK_DATA`, else `./data`."""
    return expanded(os.environ.get("DSPARK_DATA") or "data")


def find_data(name: str | Path) -> Path:
    """The file `name`, looked for as it is given and then inside `data_dir()`.

    Raises:
        DataError: it is in neither place.
    """
    for path in (expanded(name), data_dir() / name):
        if path.exists():
            return path
    raise DataError(
        f"data file {str(name)!r} does not exist",
        found=f"neither here nor in {data_dir()}",
        fix="Give its path, or set DSPARK_DATA to the folder that holds it",
    )


def expanded(path: str | Path) -> Path:
    """A path with `~` as the home folder; unchanged where there is no such folder or user."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)
