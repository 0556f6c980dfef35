"""The drafters that this project trained and ships."""

from __future__ import annotations

from pathlib import Path


def shipped_drafter(target: str, kind: str = "dspark") -> Path | None:
    """Folder of the drafter this project trained for a known target; None if it has none.

    An installed wheel carries it inside the package, a checkout in `drafters/`.
    """
    package = Path(__file__).resolve().parents[1]
    for base in (package / "_drafters", package.parents[1] / "drafters"):
        if (base / target / kind / "config.json").is_file():
            return base / target / kind
    return None
