"""What the server is told when it starts; every default is here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from dspark.errors import ConfigError

KEYS_VARIABLE = "DSPARK_API_KEYS"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and choices of one server.

    Attributes:
        model: the name that clients ask for.
        max_queue: requests that may wait for a slot; more are refused with 429.
        max_body: bytes of a request's body.
        timeout_s: seconds that one request may take, waiting included.
        grace_s: seconds that running requests get to finish when the server is stopped.
        api_keys: any of them opens the server; without any it is open to all who reach it.
        open_metrics: `/metrics` needs no key.
        cors_origins: origins whose pages may call the server; "*" is any.
        ignore_unknown: pass fields over that nobody knows, instead of refusing them.
        log_prompts: write prompts and answers to the log.
        recalibrate: refit the confidences' temperatures when they drift.
        drift_limit: mean expected calibration error that counts as drift.
        drift_window: rounds that drift is measured over.
    """

    model: str
    max_queue: int = 256
    max_body: int = 1 << 20
    timeout_s: float = 600.0
    grace_s: float = 10.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    open_metrics: bool = False
    cors_origins: tuple[str, ...] = ()
    ignore_unknown: bool = False
    log_prompts: bool = False
    recalibrate: bool = False
    drift_limit: float = 0.05
    drift_window: int = 2000


def read_api_keys(file: Path | None) -> tuple[str, ...]:
    """Keys from a file, one a line, and from the environment, with commas between them.

    Empty lines and lines that begin with # are left out.

    Raises:
        ConfigError: the file cannot be read or has no key.
    """
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"Cannot read the key file {file}",
                found=type(error).__name__,
                fix="Give a text file with one key a line",
            ) from error
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise ConfigError(f"The key file {file} has no key", fix="Write one key a line")
        keys += lines
    return tuple(dict.fromkeys(key for key in keys if key))
