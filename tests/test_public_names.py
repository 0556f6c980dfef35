"""What `import dspark` offers, and that it loads no more than is used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import dspark

NAMES = {
    *("LLM", "AsyncLLM", "SamplingParams"),
    *("RequestOutput", "TextPiece", "RoundRecord", "TokenKind", "TokenLogprobs"),
    *("Drafter", "load_target", "load_drafter"),
    *("DSparkError", "ConfigError", "DataError", "InUseError", "CheckpointError"),
    *("IncompatibleDrafterError", "RequestError", "PromptTooLongError", "QueueFullError"),
    "EngineError",
}


def test_public_names() -> None:
    assert set(dspark.__all__) == {*NAMES, "__version__"}
    assert set(dspark.__all__) <= set(dir(dspark))
    for name in NAMES:
        home = import_module(dspark._HOMES[name])
        assert getattr(dspark, name) is getattr(home, name)
        assert getattr(dspark, name).__name__ == name
        assert getattr(dspark, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = dspark.Motor


def test_importing_the_package_is_light() -> None:
    use = "import sys, dspark; dspark.SamplingParams, dspark.RequestError, dir(dspark)"
    heavy = "{'torch', 'transformers', 'numpy'}"
    check = f"{use}; found = {heavy} & sys.modules.keys(); assert not found, found"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
