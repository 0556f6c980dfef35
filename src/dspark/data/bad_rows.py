"""Rows that cannot be used: the first one stops the work, or all are skipped and counted."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal, get_args

from dspark.errors import ConfigError, DataError, DSparkError

OnBadRows = Literal["stop", "skip"]


class BadRows:
    """What to do with rows that cannot be used, and which they were.

    Args:
        mode: "stop" raises at the first one, "skip" counts them by reason.

    Attributes:
        counts: skipped rows by reason.
        first: place of the first one with each reason.

    Raises:
        ConfigError: another mode.
    """

    def __init__(self, mode: str = "stop") -> None:
        if mode not in get_args(OnBadRows):
            raise ConfigError("Unknown way with bad rows", found=mode, fix="Use stop or skip")
        self.mode = mode
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self._told = 0

    def meet(self, error: DSparkError, place: str) -> None:
        """Count a row, or stop at it.

        Args:
            error: why the row cannot be used.
            place: the row's, as in `prompts.jsonl:17`.

        Raises:
            DataError: the mode is "stop".
        """
        if self.mode == "stop":
            if isinstance(error, DataError):
                raise error
            raise DataError(f"{place}: {error.what}", found=error.found, fix=error.fix) from error
        reason = re.sub(r"\[\d+\]", "", error.what.removeprefix(place).removeprefix(":").strip())
        reason = re.sub(r"^.*: lines \d+ and \d+ have", "rows have", reason)
        self.counts[reason] += 1
        self.first.setdefault(reason, place)

    def news(self) -> str | None:
        """What was skipped, in a line; None where nothing came since the last call."""
        total = self.counts.total()
        if total == self._told:
            return None
        self._told = total
        return f"{total} bad row{'s' * (total != 1)} skipped: {self.summary()}"

    def summary(self) -> str:
        """Counts by reason, each with the place of its first row."""
        return "; ".join(
            f"{count} x {reason} (first: {self.first[reason]})"
            for reason, count in self.counts.most_common()
        )
