"""A server on a tiny target: in-process, and on a real port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from dspark.core import StepOutput
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.server.app import create_app
from dspark.server.settings import Settings
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder
from scripted import random_drafter, whole_blocks
from serving import MODEL, PATIENCE_S, Live, listening

Make = Callable[..., FastAPI]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_target_folder(
        tmp_path_factory.mktemp("target"), vocab_size=400, hidden=32, temper=4.0
    )


@pytest.fixture(scope="session")
def target(folder: Path) -> Target:
    return load_target(folder, "float32")


@pytest.fixture(scope="session")
def drafter(target: Target) -> Drafter:
    return random_drafter(target, block_size=4)


@pytest.fixture(scope="session")
def make(target: Target, drafter: Drafter) -> Make:
    """An app, by default with a small engine of its own; keywords are those of `Settings`."""

    def app(engine: Engine | None = None, **settings: Any) -> FastAPI:
        engine = engine or Engine(target, drafter, whole_blocks(drafter), slots=4, max_len=96)
        return create_app(engine, Settings(model=MODEL, **settings))

    return app


@pytest.fixture(scope="module")
def client(make: Make) -> Iterator[TestClient]:
    """A client of one server that most tests share."""
    with TestClient(make(max_body=20_000), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def live(make: Make) -> Iterator[Live]:
    """A server on a real port that most tests share."""
    with listening(make(grace_s=0.0)) as live:
        yield live


class Slow:
    """An engine on a target that never stops by itself, with steps that take their time.

    Attributes:
        engine: has one slot.
        go: while it is not set, no step begins.
        hurry: once set, steps are quick.
        fault: raised by the next step.
    """

    def __init__(self, target: Target, drafter: Drafter) -> None:
        endless = copy(target)
        endless.stop_ids = frozenset()
        self.engine = Engine(endless, drafter, whole_blocks(drafter), slots=1, max_len=96)
        self.go, self.hurry = Event(), Event()
        self.go.set()
        self.fault: Exception | None = None
        self._step = self.engine.step
        self.engine.step = self.step  # type: ignore[method-assign]

    def step(self) -> list[StepOutput]:
        self.go.wait(PATIENCE_S)
        self.hurry.wait(0.05)
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        return self._step()


@pytest.fixture
def slow(target: Target, drafter: Drafter) -> Slow:
    return Slow(target, drafter)
