"""Every error a person can meet, in one tree.

A message says what was wrong, what was found, and what to do about it. The command line prints
it in one line and exits with code 2.
"""

from __future__ import annotations


class DSparkError(Exception):
    """Base of all errors that are not our own bug.

    Args:
        what: what was wrong, as a short sentence without a full stop.
        found: the value or state that was met, if it helps.
        fix: what the reader can do about it.
    """

    def __init__(self, what: str, *, found: object = None, fix: str | None = None) -> None:
        self.what, self.found, self.fix = what, found, fix
        text = what
        if found is not None:
            text += f" (found: {found})"
        if fix:
            text += f". {fix}"
        super().__init__(text)


class ConfigError(DSparkError):
    """A configuration file or an option has a key or value that cannot be used."""


class DataError(DSparkError):
    """A data file is missing, damaged or lacks a field."""


class InUseError(DataError):
    """Another process writes the output that is wanted."""


class CheckpointError(DSparkError):
    """Weights or a checkpoint cannot be read or written."""


class IncompatibleDrafterError(CheckpointError):
    """A drafter does not fit the target it is asked to draft for."""


class RequestError(DSparkError):
    """One request cannot be served as it stands; others are not affected."""


class PromptTooLongError(RequestError):
    """A prompt leaves no room to answer."""


class QueueFullError(RequestError):
    """Too many requests are waiting; a later try may find room."""


class EngineError(DSparkError):
    """A step of the engine failed.

    Attributes:
        requests: ids of those that made it fail, where that is known: the others can go on
            without them.
    """

    requests: tuple[int, ...] = ()
