"""`dspark fetch`: make a known target ready in the cache."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dspark.fetching.fetch import fetch as fetch_target
from dspark.fetching.known import DEFAULT_TARGET


def command(
    name: Annotated[str, typer.Argument(help="Name of a known target.")] = DEFAULT_TARGET,
) -> None:
    """Download a known target, check it and make it ready; does nothing if it is there.

    Prints the model's folder. A second run after an interruption goes on where it stopped.

    Examples:

        dspark fetch smollm2-135m

        DSPARK_CACHE=/big/disk dspark fetch smollm2-135m
    """
    folder = fetch_target(name, lambda line: print(line, file=sys.stderr, flush=True))
    print(folder)
