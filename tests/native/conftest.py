"""Every kernel level that this machine runs, from its best down to the lowest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dspark import native

NONE = pytest.param("", marks=pytest.mark.skip("no C++ compiler on this machine"))


@pytest.fixture(params=native.usable()[:0:-1] or [NONE])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The level that serves during a test, whatever is loaded."""
    before = native.current()
    monkeypatch.setenv("DSPARK_KERNELS", request.param)
    native.use(request.param)
    yield request.param
    native.use(before)
