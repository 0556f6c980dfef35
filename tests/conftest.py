"""What every test shares: one thread, no network, fixed seeds, a cache folder of its own."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

# Before anything imports torch or transformers, and inherited by child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Targets are kept in the tests of that alone, which have a cache of their own.
os.environ["DSPARK_KEPT_GIB"] = "0"

import pytest
from hypothesis import settings

settings.register_profile("dspark", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dspark")


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    """Seeds what is loaded; torch is not imported for the tests that do without it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_cost_in_the_users_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the policy `auto` measures here is kept apart, unless a test has a cache of its own."""
    tables, users = sys.modules.get("dspark.engine.tables"), os.environ.get("DSPARK_CACHE")
    if tables is None:
        return
    plain = tables.cache_dir

    def cache_dir() -> Path:
        own = os.environ.get("DSPARK_CACHE") != users
        return plain() if own else tmp_path_factory.getbasetemp() / "cost"

    monkeypatch.setattr(tables, "cache_dir", cache_dir)


@pytest.fixture
def tmp_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder in place of the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DSPARK_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def default_target() -> Path:
    """Folder of the real default target; skips where it was not fetched."""
    from dspark.fetching.known import DEFAULT_TARGET, is_fetched, target_folder

    if not is_fetched(DEFAULT_TARGET):
        pytest.skip(f"the default target is not in the cache; run `dspark fetch {DEFAULT_TARGET}`")
    return target_folder(DEFAULT_TARGET)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder; skips where it is absent."""
    from dspark.artifacts import data_dir

    if not data_dir().is_dir():
        pytest.skip(f"no data folder at {data_dir()}; set DSPARK_DATA")
    return data_dir().absolute()
