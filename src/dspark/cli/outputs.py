"""What a verb writes: looked at before any work, and kept from other runs until the verb ends."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

from dspark.errors import DSparkError


class _Unwritable(DSparkError):
    """No reason to stop."""


held = ExitStack()  # closed by `cli.main` when the verb ends, however it does
_claimed: list[Path] = []


def claim(*paths: Path | None) -> None:
    """Refuse outputs that cannot be written or that another run writes; hold them from now on.

    Args:
        paths: files, there or not; None is passed over.

    Raises:
        DataError: an output cannot be written.
        InUseError: another process holds it.
    """
    from dspark.artifacts import check_writable, hold

    held.callback(_claimed.clear)

    wanted = dict.fromkeys(path for path in paths if path is not None)
    for path in wanted:
        check_writable(path)
    for path in wanted:
        held.enter_context(hold(path))
        _claimed.append(path)


def claim_kept(path: Path) -> None:
    """Hold a file of the cache that a verb can do without: one that cannot be written is no error.

    Raises:
        InUseError: another process holds it.
    """
    from dspark.artifacts import hold

    with suppress(_Unwritable):
        held.enter_context(hold(path, error=_Unwritable))


def beside(path: Path | None, ending: str) -> Path | None:
    """Where finished parts of a result file are kept: none without one, or for a device."""
    from dspark.artifacts import is_device

    return None if path is None or is_device(path) else path.with_name(f"{path.name}{ending}")


def writes_files() -> bool:
    """Whether the verb has results to write besides what it prints."""
    return bool(_claimed)
