"""What names mean: a drafter by a shipped name, a folder, "auto" or "none". No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dspark.drafters.shipped import shipped_drafter
from dspark.errors import CheckpointError, ConfigError, IncompatibleDrafterError
from dspark.fetching.known import KNOWN_TARGETS

AUTO, NONE = "auto", "none"
SHIPPED = "dspark"  # the kind that "auto" takes


def resolve_name(drafter: str, target: str) -> str:
    """The name of a shipped drafter, or "none", in place of "auto"; other names stay."""
    if drafter != AUTO:
        return drafter
    return SHIPPED if shipped_drafter(target, SHIPPED) else NONE


def find_drafter(name: str, target: str) -> Path | None:
    """Folder of the drafter meant by ``name``; None for none.

    Args:
        name: "auto" (the shipped one for this target, if there is one), "none", a shipped name or
            a checkpoint folder.
        target: known name, folder or Hugging Face id.

    Raises:
        CheckpointError: no such folder, and no drafter of that name is shipped.
        IncompatibleDrafterError: a shipped name, but for other targets than this one.
    """
    name = resolve_name(name, target)
    if name == NONE:
        return None
    shipped = shipped_drafter(target, name)
    if shipped is not None:
        return shipped
    folder = Path(name)
    if folder.is_dir():
        return folder
    elsewhere = [known for known in KNOWN_TARGETS if shipped_drafter(known, name)]
    if elsewhere:
        raise IncompatibleDrafterError(
            f"The shipped drafter {name} is for another target",
            found=f"drafter for {', '.join(elsewhere)}, target {target}",
            fix="Use --drafter none, or a folder with a drafter trained for this target",
        )
    raise CheckpointError(
        f"There is no drafter {name}",
        fix="Give a checkpoint folder, a shipped name (dspark), or none",
    )


def named_drafters(texts: Sequence[str] | None, target: str) -> list[tuple[str | None, Path]]:
    """Label, if there is one, and folder of each drafter; of the default one where none is named.

    Args:
        texts: NAME=PATH, a path or a shipped name.

    Raises:
        ConfigError: one means no drafter, or a name is empty.
        CheckpointError, IncompatibleDrafterError: see `find_drafter`.
    """
    return [_named_drafter(text, target) for text in texts or [AUTO]]


def _named_drafter(text: str, target: str) -> tuple[str | None, Path]:
    label, equals, name = text.partition("=")
    if not equals or Path(text).is_dir():  # a folder's own name may hold the sign
        label, name = "", text
    elif not label:
        raise ConfigError("A drafter's name is empty", found=text, fix="Write NAME=PATH")
    folder = find_drafter(name, target)
    if folder is None:
        raise ConfigError("There is nothing to judge without a drafter", fix="Name a drafter")
    return label or None, folder
