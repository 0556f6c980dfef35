"""The build hook: what a wheel carries, by a stand-in for the builder that runs it."""

from __future__ import annotations

import importlib.util
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dspark.native import build, compiling

ROOT = Path(__file__).parents[1]
Made = Callable[..., tuple[Any, dict[str, Any]]]


class Hook:
    """What the hook inherits: a root and a place for messages."""

    def __init__(self, root: Path) -> None:
        self.root, self.told = str(root), list[str]()
        self.app = SimpleNamespace(display_warning=self.told.append, display_info=self.told.append)


@pytest.fixture
def hook_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`hatch_build.py`, whose compiler is asked for no optimisation."""
    parts = ["hatchling", "builders", "hooks", "plugin", "interface"]
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[".".join(parts)].BuildHookInterface = Hook  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load = module.load_compiling

    def hasty(root: Path) -> ModuleType:
        found = load(root)
        found.FLAGS = (*found.FLAGS, "-O0")
        found.TIMEOUT_S = 60
        return found

    monkeypatch.setattr(module, "load_compiling", hasty)
    return module


@pytest.fixture
def made(hook_module: ModuleType) -> Iterator[Made]:
    """Runs the hook on a root: the hook, and what it tells the builder."""
    hooks = []

    def make(root: Path, version: str = "standard") -> tuple[Any, dict[str, Any]]:
        hook, data = hook_module.WheelHook(root), {"force_include": {}, "pure_python": True}
        hooks.append((hook, version, data))
        hook.initialize(version, data)
        return hook, data

    yield make
    for hook, version, data in hooks:
        hook.finalize(version, data, "dspark.whl")
        assert not any(Path(file).exists() for file in data["force_include"] if "kernels" in file)


@pytest.mark.skipif(compiling.find_compiler() is None, reason="no C++ compiler here")
def test_a_wheel_carries_the_kernels_for_its_platform(made: Made) -> None:
    hook, data = made(ROOT)
    inside = {name: Path(file) for file, name in data["force_include"].items() if "native" in name}
    library, check = sorted(inside, key=len)
    assert library.startswith(f"dspark/native/kernels-{compiling.machine()}-")
    assert Path(library).with_suffix(compiling.CHECK) == Path(check)
    assert data["tag"].startswith("py3-none-")
    assert not {"any", "-", "."} & set(data["tag"].removeprefix("py3-none-"))
    assert data["pure_python"] is False
    assert build.load(inside[library])
    assert hook.told == [f"The wheel carries kernels: {', '.join(levels_here())}"]


def levels_here() -> list[str]:
    return list(compiling.LEVELS[compiling.machine()])


@pytest.mark.parametrize("fault", ["none", "fails"])
def test_a_wheel_without_kernels_is_for_any_machine(
    fault: str, made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "compiler"
    script.write_text("#!/bin/sh\necho 'no such flag' >&2; exit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script) if fault == "fails" else "")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    hook, data = made(ROOT)
    assert not [name for name in data["force_include"].values() if "native" in name]
    assert data["pure_python"] is True
    assert "tag" not in data
    (line,) = hook.told
    assert "without kernels" in line
    assert ("no such flag" if fault == "fails" else "no C++ compiler") in line
    assert "\n" not in line


def test_an_editable_install_compiles_nothing(made: Made) -> None:
    hook, data = made(ROOT, "editable")
    assert not [name for name in data["force_include"].values() if "native" in name]
    assert not hook.told


def test_drafters_that_exist_are_carried(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    native = tmp_path / "src" / "dspark" / "native"
    native.mkdir(parents=True)
    shutil.copy(compiling.HERE / "compiling.py", native)
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    assert made(tmp_path)[1]["force_include"] == {}
    folder = tmp_path / "drafters" / "smollm2-135m" / "dspark"
    folder.mkdir(parents=True)
    for name in ("config.json", ".hidden"):
        (folder / name).write_text("{}")
    assert list(made(tmp_path)[1]["force_include"].values()) == [
        "dspark/_drafters/smollm2-135m/dspark/config.json"
    ]
