"""Tiny targets of every family, made once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspark.drafters.drafter import Drafter
from dspark.targets.target import Target, load_target
from fakes import FAMILIES, tiny_target_folder
from scripted import random_drafter


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("targets")
    return {family: tiny_target_folder(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def targets(folders: dict[str, Path]) -> dict[str, Target]:
    return {family: load_target(folder, "float32") for family, folder in folders.items()}


@pytest.fixture(scope="session")
def target(targets: dict[str, Target]) -> Target:
    return targets["llama"]


@pytest.fixture(scope="session")
def drafter(target: Target) -> Drafter:
    return random_drafter(target)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert "dspark-engine" not in {thread.name for thread in threading.enumerate()}
