"""What a target's name means: a known target, a folder or a Hugging Face id."""

from __future__ import annotations

from pathlib import Path

from dspark import artifacts
from dspark.errors import CheckpointError
from dspark.fetching.fetch import Progress, fetch
from dspark.fetching.known import KNOWN_TARGETS


def resolve_target(target: str | Path, progress: Progress = lambda line: None) -> str | Path:
    """What a loader should open for `target`.

    Args:
        target: a known name (fetched first when it is absent), a folder, or a Hugging Face id.
            A known name wins over a folder of that name here; write `./NAME` for the folder.
        progress: receives one line a stage when something is fetched.

    Returns:
        the folder, or the Hugging Face id as it was given.

    Raises:
        CheckpointError: a path that is no folder, or fetching failed.
    """
    if str(target) in KNOWN_TARGETS:
        return fetch(str(target), progress)
    text, folder = str(target), artifacts.expanded(target)
    if text and folder.is_dir():
        return folder
    looks_like_path = isinstance(target, Path) or text.startswith((".", "/", "~"))
    if looks_like_path or folder.exists() or text.count("/") > 1 or not text:
        raise CheckpointError(
            "the target is not a model folder",
            found=text or "an empty name",
            fix=f"Give a folder, a Hugging Face id, or one of: {', '.join(KNOWN_TARGETS)}",
        )
    return text


def portable_name(name: str) -> str:
    """A target's name without folders of this machine; ids and known names stay."""
    return Path(name).name if Path(name).is_dir() else name
