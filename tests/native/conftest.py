"""Every kernel level that this machine runs, from its best down to the lowest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dspark import native


@pytest.fixture(
    params=native.usable()[:0:-1]
    or [pytest.param("", marks=pytest.mark.skip("no C++ compiler on this machine"))]
)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The level that serves during a test."""
    before = native.current()
    native.use(request.param)
    yield request.param
    native.use(before)
