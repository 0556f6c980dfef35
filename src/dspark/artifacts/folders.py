"""Where things lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from dspark.errors import DataError


def cache_dir() -> Path:
    """Folder for what can be made again: `$DSPARK_CACHE`, else the user's cache folder/dspark."""
    if own := os.environ.get("DSPARK_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dspark"


def data_dir() -> Path:
    """Folder of data the repository does not hold: `$DSPARK_DATA`, else `./data`."""
    return Path(os.environ.get("DSPARK_DATA") or "data").expanduser()


def find_data(name: str | Path) -> Path:
    """The file `name`, looked for as it stands and then inside `data_dir()`.

    Raises:
        DataError: it is in neither place.
    """
    for path in (Path(name).expanduser(), data_dir() / name):
        if path.exists():
            return path
    raise DataError(
        f"data file {str(name)!r} does not exist",
        found=f"neither here nor in {data_dir()}",
        fix="Give its path, or set DSPARK_DATA to the folder that holds it",
    )
