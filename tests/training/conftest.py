"""One tiny target with its answers for all training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark.targets.target import Target, load_target
from tiny import tiny_home


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def target(home: Path) -> Target:
    return load_target(home / "target", "float32")
