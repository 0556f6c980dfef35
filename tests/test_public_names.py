"""What `import dspark` offers, and that it loads no more than is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dspark
from dspark.engine.async_engine import AsyncEngine
from dspark.engine.engine import Engine


def test_public_names() -> None:
    names = {"AsyncEngine", "Engine", "SamplingParams", "load_drafter", "load_target"}
    assert set(dspark.__all__) == names | {"__version__"}
    assert set(dspark.__all__) <= set(dir(dspark))
    assert (dspark.Engine, dspark.AsyncEngine) == (Engine, AsyncEngine)
    for name in names:
        assert getattr(dspark, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = dspark.Motor


def test_importing_the_package_is_light() -> None:
    use = "import sys, dspark; dspark.SamplingParams, dir(dspark)"
    check = f"{use}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
